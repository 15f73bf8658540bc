"""Formats measurements as Markdown tables and as lines for the terminal."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .record import Measurement, grouped

Column = TypeVar("Column", bound=Hashable)


def contender_of(line: Measurement) -> str:
    """Returns the contender of a measurement (such as a library), which is the default name of a table's row."""
    return line.contender


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned right."""
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), ""])


def matrix(
    lines: Iterable[Measurement],
    column: Callable[[Measurement], Column],
    columns: Mapping[Column, str],
    cell: Callable[[Measurement], str],
    *,
    name: Callable[[Measurement], str] = contender_of,
    corner: str = "",
) -> str:
    """Returns a table with one row for each name, in the order in which the names first occur in `lines`.

    `name` returns the name of the row of a measurement, `column` its column, and `cell` the text of its cell. `columns`
    maps the columns to their titles. `corner` is the title of the column of names.
    """
    cells: dict[str, dict[Column, str]] = {}
    for line in lines:
        cells.setdefault(name(line), {})[column(line)] = cell(line)
    return table(
        [corner, *columns.values()], ([each, *(row.get(at, "") for at in columns)] for each, row in cells.items())
    )


def plain(lines: Sequence[Measurement]) -> str:
    """Returns a table in the common layout, for measurements that have no special layout."""
    columns = ["", "by", "at", "median", "quartiles", "ratios", "more"]
    return table(columns, ([line.what, line.contender, _setting(line, 40), *_values(line)] for line in lines))


def _values(line: Measurement) -> list[str]:
    """Returns the texts of four cells: the median, the quartiles, the ratios, and the field `more`."""
    if line.value is None:
        return [f"skipped: {line.skipped}", "", "", ""]
    value, over = line.value, (line.ratios or {}).items()
    ratios = (f"{name}: {each.median:.4g} ({each.low_quartile:.4g} to {each.high_quartile:.4g})" for name, each in over)
    more = (f"{name} {_short(each)}" for name, each in (line.more or {}).items())
    quartiles = f"{value.low_quartile:.4g} to {value.high_quartile:.4g}"
    return [f"{value.median:.4g} {line.unit}", quartiles, "; ".join(ratios), ", ".join(more)]


def skipped(
    lines: Iterable[Measurement],
    name: Callable[[Measurement], str] = contender_of,
    where: Callable[[Sequence[Measurement]], str] = lambda _: "",
) -> list[str]:
    """Returns the lines of a Markdown list of skipped measurements, with one item for each contender and reason.

    `name` returns the name of the contender, which is what was measured, such as a library. `where` receives all
    measurements of an item, and returns a text about their settings. This text is appended to the name.
    """
    found = grouped((line for line in lines if line.skipped is not None), lambda line: (name(line), line.skipped))
    entries = [f"- {who}{where(those)}: {reason}" for (who, reason), those in found.items()]
    return ["Skipped:\n", *entries, ""] if entries else []


def progress(line: Measurement, note: str = "") -> str:
    """Returns a line of at most 79 characters for the terminal; `note` is a text about the measurement."""
    if line.value is None:
        return f"{line.contender:<18} {_setting(line)} skipped: {line.skipped}"[:79]
    ratio = next((f"x {ratio.median:.2f}" for ratio in (line.ratios or {}).values()), "")
    said = " ".join(part for part in (ratio, note, _setting(line)) if part)
    return f"{line.contender:<18} {line.median:>10.4g} {line.unit[:12]} {said}"[:79]


def _setting(line: Measurement, letters: int = 6) -> str:
    """Returns the setting as `name=value`, with names cut to `letters` characters."""
    return " ".join(f"{name[:letters]}={_short(value)}" for name, value in line.setting.items() if value is not None)


def _short(value: Any) -> str:
    """Returns a value in few characters; a spread is represented by its median."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = getattr(value, "median", value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def insert(text: str, name: str, table: str) -> str:
    """Returns the document `text` with `table` in place of what lies between <!-- NAME --> and <!-- end -->.

    Raises:
        ValueError: If the document has no such markers.
    """
    before, found, rest = text.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition("<!-- end -->")
    if not found or not closed:
        raise ValueError(f"the document has no <!-- {name} --> with an <!-- end --> after it; add both lines.")
    return f"{before}{found}{table}\n{closed}{after}"
