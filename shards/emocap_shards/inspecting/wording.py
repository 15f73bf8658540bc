"""Numbers as a person reads them."""

from emocap_shards.inspecting.counters import Counts


def number(value: float) -> str:
    """Whole numbers in full, others in three digits."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def percent(part: float, whole: float) -> str:
    """A share of nothing is "-"; one that only rounds to 0 or 100 says so."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < share < 100 else f"{share:.3g} %"


def share_repeated(counts: Counts) -> str:
    """The share of items that repeat an earlier one; an upper bound where items were forgotten."""
    share = percent(counts.repeats, counts.total)
    if not counts.short or share.startswith("<"):
        return share
    return "≤ 100 %" if share.startswith(">") else f"≤ {share}"


def share_once(counts: Counts) -> str:
    """The share of different items that came a single time; "-" where items were forgotten."""
    return "-" if counts.short else percent(counts.once, counts.distinct)


def size(number_bytes: float) -> str:
    """Bytes in decimal units, three digits up to 1,000 TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number_bytes) < 999.5:  # what rounds to 1,000 is one of the next unit
            return f"{number_bytes:.3g} {unit}"
        number_bytes /= 1000
    return f"{number_bytes:.3g} TB" if abs(number_bytes) < 999.5 else f"{number_bytes:,.0f} TB"
