"""Formats the records of a loss as Markdown, and numbers with suitable units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.harness import tables
from benchmarks.harness.record import Measurement

from .results import is_wrong, label_of, more_of, place_of, size_of
from .size import Size
from .variants import BOTH, PASSES


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns times, memory, and the reasons of skipped contenders, for each device, type and width."""
    places = dict.fromkeys(map(place_of, lines))
    return "\n".join(_of_place([line for line in lines if place_of(line) == place]) for place in places)


def _of_place(lines: Sequence[Measurement]) -> str:
    _, device, dtype, width = place_of(lines[0])
    parts = [f"### {device}, {dtype}, width {width}\n"]
    for pass_ in PASSES:
        measured = [line for line in lines if line.setting["pass"] == pass_]
        parts += [f"{pass_}: median time (ratio to ours in the same round, efficiency)\n", _matrix(measured, _time)]
    heavy = [line for line in lines if line.setting["pass"] == BOTH]
    parts += [f"{BOTH}: peak memory above the inputs\n", _matrix(heavy, _memory)]
    return "\n".join([*parts, *tables.skipped(lines, label_of, _where)])


def _matrix(lines: Sequence[Measurement], cell: Callable[[Measurement], str]) -> str:
    """Returns a table with a row for each contender and a column for each batch size."""
    sizes = _sorted_sizes(lines)
    corner = "images x patches x sentences" if any(size.patches is not None for size in sizes) else ""
    return tables.matrix(lines, size_of, {size: shape(size) for size in sizes}, cell, name=label_of, corner=corner)


def _sorted_sizes(lines: Sequence[Measurement]) -> list[Size]:
    sizes = {size for line in lines if (size := size_of(line)) is not None}
    return sorted(sizes, key=lambda size: size.order)


def _time(line: Measurement) -> str:
    if line.value is None:
        return "out of memory" if (line.skipped or "").startswith("out of memory") else "skipped"
    over = (line.ratios or {}).items()
    ratio = "".join(f"x {ratio.median:.2f}, " for name, ratio in over if not _over_itself(line, name))
    return f"{duration(line.median)} ({ratio}{more_of(line, 'eff'):.2f})"


def _over_itself(line: Measurement, name: str) -> bool:
    return name == f"over {line.contender}" and more_of(line, "function") is None


def _memory(line: Measurement) -> str:
    peak = more_of(line, "peak_bytes")
    return "" if peak is None else size(peak)


def _where(lines: Sequence[Measurement]) -> str:
    sizes = _sorted_sizes(lines)
    return f" at {', '.join(map(shape, sizes))}" if sizes else ""


def shape(size: Size) -> str:
    """Returns the heading of a column: rows, and patches and sentences if there are any."""
    return " x ".join(f"{number:,}" for number in (size.rows, size.patches, size.sentences) if number is not None)


def note(line: Measurement) -> str:
    """Returns the efficiency and the memory of a measurement, and says so if its result is wrong."""
    eff = more_of(line, "eff")
    parts = ("" if eff is None else f"eff {eff:.2f}", _memory(line), "WRONG" if is_wrong(line) else "")
    return " ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Returns a time with three digits, in a suitable unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor or unit == "us":
            return f"{_three_digits(seconds / factor)} {unit}"
    raise AssertionError


def size(count: float) -> str:
    """Returns a number of bytes in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor or unit == "kB":
            return f"{_three_digits(count / factor)} {unit}"
    raise AssertionError


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
