"""Formats measurements as Markdown and as lines for the terminal."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .record import Measurement

Column = TypeVar("Column", bound=Hashable)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(cells: Sequence[str]) -> list[str]:
    """Returns the first two rows of a table; all columns but the first are aligned at the right."""
    return [row(cells), row(["---", *("---:" for _ in cells[1:])])]


def matrix(
    lines: Iterable[Measurement],
    column: Callable[[Measurement], Column],
    columns: Mapping[Column, str],
    cell: Callable[[Measurement], str],
    *,
    name: Callable[[Measurement], str] = lambda line: line.contender,
    corner: str = "",
) -> str:
    """Returns a table of names by columns; the rows are in the order of their first measurements."""
    table: dict[str, dict[Column, str]] = {}
    for line in lines:
        table.setdefault(name(line), {})[column(line)] = cell(line)
    body = (row([each, *(cells.get(at, "") for at in columns)]) for each, cells in table.items())
    return "\n".join([*head([corner, *columns.values()]), *body, ""])


def plain(lines: Sequence[Measurement]) -> str:
    """Returns a table of measurements that need no table of their own."""
    rows = [row([line.what, line.contender, _at(line, 40), *_figures(line)]) for line in lines]
    return "\n".join([*head(["", "by", "at", "median", "quartiles", "ratios", "more"]), *rows, ""])


def _figures(line: Measurement) -> list[str]:
    if line.value is None:
        return [f"skipped: {line.skipped}", "", "", ""]
    value, over = line.value, (line.ratios or {}).items()
    ratios = (f"{name}: {each.median:.4g} ({each.low_quartile:.4g} to {each.high_quartile:.4g})" for name, each in over)
    more = (f"{name} {_short(each)}" for name, each in (line.more or {}).items())
    quartiles = f"{value.low_quartile:.4g} to {value.high_quartile:.4g}"
    return [f"{value.median:.4g} {line.unit}", quartiles, "; ".join(ratios), ", ".join(more)]


def skipped(
    lines: Iterable[Measurement],
    name: Callable[[Measurement], str] = lambda line: line.contender,
    where: Callable[[Sequence[Measurement]], str] = lambda _: "",
) -> list[str]:
    """Returns why contenders were skipped, each reason once; `where` describes the measurements that it concerns."""
    found: dict[tuple[str, str], list[Measurement]] = {}
    for line in lines:
        if line.skipped is not None:
            found.setdefault((name(line), line.skipped), []).append(line)
    entries = [f"- {who}{where(those)}: {reason}" for (who, reason), those in found.items()]
    return ["Skipped:\n", *entries, ""] if entries else []


def progress(line: Measurement, note: str = "") -> str:
    """Returns one line of at most 79 characters."""
    if line.value is None:
        return f"{line.contender:<18} {_at(line)} skipped: {line.skipped}"[:79]
    ratio = next((f"x {ratio.median:.2f}" for ratio in (line.ratios or {}).values()), "")
    parts = (ratio, note, _at(line))
    said = " ".join(part for part in parts if part)
    return f"{line.contender:<18} {line.median:>10.4g} {line.unit[:12]} {said}"[:79]


def _at(line: Measurement, letters: int = 6) -> str:
    return " ".join(f"{name[:letters]}={_short(value)}" for name, value in line.setting.items() if value is not None)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = getattr(value, "median", value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def insert(text: str, name: str, table: str) -> str:
    """Returns a document with the table between its markers <!-- NAME --> and <!-- end -->.

    Raises:
        ValueError: If it has no such markers.
    """
    before, found, rest = text.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition("<!-- end -->")
    if not found or not closed:
        raise ValueError(f"the document has no <!-- {name} --> with an <!-- end --> after it; add both lines.")
    return f"{before}{found}{table}\n{closed}{after}"
