"""The records as Markdown, and as lines of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .record import Line
from .size import Size
from .variants import BOTH, PASSES

Cell = Callable[[Line], str]


def markdown(lines: Sequence[Line]) -> str:
    """For each device, type and width: time of both passes, memory, and who was skipped and why."""
    places = dict.fromkeys(line.place for line in lines)
    return "\n".join(_of_place([line for line in lines if line.place == place]) for place in places)


def _of_place(lines: Sequence[Line]) -> str:
    _, device, dtype, width = lines[0].place
    parts = [f"### {device}, {dtype}, width {width}\n"]
    for pass_ in PASSES:
        measured = [line for line in lines if line.pass_ == pass_]
        parts += [f"{pass_}: median time (ratio to ours in the same round, efficiency)\n", _matrix(measured, _time)]
    heavy = [line for line in lines if line.pass_ == BOTH]
    parts += [f"{BOTH}: peak memory above the inputs\n", _matrix(heavy, _memory), _reasons(lines)]
    return "\n".join(parts)


def _matrix(lines: Sequence[Line], cell: Cell) -> str:
    """Contenders by batch sizes."""
    sizes = sorted({line.size for line in lines if line.size is not None}, key=lambda size: size.order)
    text = {(line.label, line.size): cell(line) for line in lines}
    regions = any(size.patches is not None for size in sizes)
    head = ["images x patches x sentences" if regions else "", *map(shape, sizes)]
    labels = dict.fromkeys(line.label for line in lines)
    body = ([label, *(text.get((label, size), "") for size in sizes)] for label in labels)
    return "\n".join([_row(head), _row(["---", *("---:" for _ in sizes)]), *map(_row, body), ""])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _time(line: Line) -> str:
    if line.seconds is None:
        return "out of memory" if (line.skipped or "").startswith("out of memory") else "skipped"
    itself = line.ratio_to == line.contender and line.function is None
    ratio = "" if line.ratio is None or itself else f"x {line.ratio.median:.2f}, "
    return f"{duration(line.seconds.median)} ({ratio}{line.eff:.2f})"


def _memory(line: Line) -> str:
    return "" if line.peak_bytes is None else size(line.peak_bytes)


def _reasons(lines: Sequence[Line]) -> str:
    """One entry for each contender that was skipped anywhere, a reason once."""
    found: dict[tuple[str, str], list[Size]] = {}
    for line in lines:
        if line.skipped is not None:
            found.setdefault((line.label, line.skipped), []).extend([] if line.size is None else [line.size])
    entries = [f"- {label}{_at(sizes)}: {reason}" for (label, reason), sizes in found.items()]
    return "\n".join(["Skipped:\n", *entries, ""]) if entries else ""


def _at(sizes: Iterable[Size]) -> str:
    ordered = sorted(set(sizes), key=lambda size: size.order)
    return f" at {', '.join(map(shape, ordered))}" if ordered else ""


def shape(size: Size) -> str:
    """What varies within one table."""
    return " x ".join(f"{number:,}" for number in (size.rows, size.patches, size.sentences) if number is not None)


def progress(line: Line) -> str:
    """One line of at most 79 characters."""
    pass_ = {"forward": "fwd", "forward+backward": "fwd+bwd", None: ""}[line.pass_]
    start = f"{line.contender:<9} {line.variant:<9} {pass_:<7} {_short_shape(line.size):>11} "
    if line.seconds is None or line.eff is None:
        return f"{start} skipped: {line.skipped}"[:79]
    ratio = "" if line.ratio is None else f"x{line.ratio.median:.2f}"
    memory = "" if line.peak_bytes is None else size(line.peak_bytes)
    wrong = "" if line.agreement is None or line.agreement.right else " WRONG"
    return f"{start}{duration(line.seconds.median):>8} {ratio:>6} eff {line.eff:.2f} {memory:>8}{wrong}"[:79]


def _short_shape(size: Size | None) -> str:
    """Rows and width, or rows, patches and sentences of an image."""
    if size is None:
        return ""
    if size.patches is None or size.sentences is None:
        return f"{size.rows}x{size.width}"
    return f"{size.rows}x{size.patches}x{size.sentences / size.rows:g}"


def duration(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor or unit == "us":
            return f"{_three_digits(seconds / factor)} {unit}"
    raise AssertionError


def size(count: float) -> str:
    """Of bytes, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor or unit == "kB":
            return f"{_three_digits(count / factor)} {unit}"
    raise AssertionError


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
