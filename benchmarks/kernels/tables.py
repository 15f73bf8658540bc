"""Reads the records of a loss, and formats them as Markdown tables with suitable units.

Tables and figures (`plots`) are made from the records alone, so they can be made again without a measurement.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import tables
from benchmarks.harness.record import Measurement, grouped

from .subject import BOTH, PASSES, Size
from .subjects import PLAIN


def size_of(line: Measurement) -> Size | None:
    """Returns the size of a measurement, or None if the implementation of the loss was skipped at every size."""
    at = line.setting
    return None if at["rows"] is None else Size(at["rows"], at["width"], at["patches"], at["sentences"])


def sizes_of(lines: Sequence[Measurement]) -> list[Size]:
    """Returns the sizes of all measurements in ascending order."""
    sizes = {size for line in lines if (size := size_of(line)) is not None}
    return sorted(sizes, key=lambda size: size.order)


def place_of(line: Measurement) -> tuple[str, str, str, int]:
    """Returns the loss, device, dtype and width of a measurement. Each combination has its own tables and figures."""
    return line.what, line.device, line.setting["dtype"], line.setting["width"]


def label_of(line: Measurement) -> str:
    """Returns the name of a row or a curve: the implementation, and the variant if that is not the plain loss.

    " (wrong)" is appended if the results of the implementation are wrong.
    """
    variant = line.setting["variant"]
    name = line.contender if variant == PLAIN.name else f"{line.contender} {variant}"
    return f"{name} (wrong)" if is_wrong(line) else name


def is_wrong(line: Measurement) -> bool:
    """Returns whether the results of the measured loss differ too much from those in float64 at a small size."""
    agreement = more_of(line, "agreement")
    return agreement is not None and not agreement["right"]


def more_of(line: Measurement, name: str) -> Any:
    """Returns the entry `name` of the field `more` of a record. It is None if the record has no such value.

    - objective, mining, function: the fields of `Variant`, with the mining as text.
    - peak_bytes: the peak memory of a call, with its results and without its inputs.
    - floor_flops: the fewest floating-point operations that this loss needs.
    - eff: `floor_flops` / (median seconds x `matmul_flops_per_s`).
    - matmul_flops_per_s: the rate of a square matrix product in the same dtype, measured together with the loss.
    - agreement: the comparison with float64 at a small size; None if our package does not compute this variant.
    - sampled: the comparison with float64 at this size, for a random sample of the rows of the gradients.
    """
    return (line.more or {}).get(name)


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns the tables of times and memory, and the list of what was skipped, for each device, dtype and width."""
    return "\n".join(map(_of_place, grouped(lines, place_of).values()))


def _of_place(lines: Sequence[Measurement]) -> str:
    """Returns the tables of one device, dtype and width."""
    at = lines[0].setting
    parts = [f"### {lines[0].device}, {at['dtype']}, width {at['width']}\n"]
    for pass_ in PASSES:
        measured = [line for line in lines if line.setting["pass"] == pass_]
        parts += [f"{pass_}: median time (ratio to ours in the same round, efficiency)\n", _matrix(measured, _time)]
    heavy = [line for line in lines if line.setting["pass"] == BOTH]
    parts += [f"{BOTH}: peak memory above the inputs\n", _matrix(heavy, _memory)]
    return "\n".join([*parts, *tables.skipped(lines, label_of, _where)])


def _matrix(lines: Sequence[Measurement], cell: Callable[[Measurement], str]) -> str:
    """Returns a table with a row for each implementation and variant of a loss, and a column for each batch size."""
    sizes = sizes_of(lines)
    corner = "images x patches x sentences" if any(size.patches is not None for size in sizes) else ""
    return tables.matrix(lines, size_of, {size: _shape(size) for size in sizes}, cell, name=label_of, corner=corner)


def _time(line: Measurement) -> str:
    """Returns the text of a cell: the median time, its ratio to the time of our loss, and the efficiency (`eff`)."""
    if line.value is None:
        return "out of memory" if (line.skipped or "").startswith("out of memory") else "skipped"
    # The ratio of ours to itself is left out, but not the ratio of another function of ours to our plain loss.
    itself = f"over {line.contender}" if more_of(line, "function") is None else ""
    over = "".join(f"x {ratio.median:.2f}, " for name, ratio in (line.ratios or {}).items() if name != itself)
    return f"{duration(line.median)} ({over}{more_of(line, 'eff'):.2f})"


def _memory(line: Measurement) -> str:
    """Returns the peak memory of a measurement as text, which is empty if the memory was not measured."""
    peak = more_of(line, "peak_bytes")
    return "" if peak is None else memory(peak)


def _where(lines: Sequence[Measurement]) -> str:
    """Returns the sizes of skipped measurements as text; an empty text if all sizes were skipped."""
    sizes = sizes_of(lines)
    return f" at {', '.join(map(_shape, sizes))}" if sizes else ""


def _shape(size: Size) -> str:
    """Returns the heading of a column: rows, and patches and sentences if there are any."""
    return " x ".join(f"{number:,}" for number in (size.rows, size.patches, size.sentences) if number is not None)


def note(line: Measurement) -> str:
    """Returns a text for the line that is printed after a measurement: the efficiency and the peak memory.

    A wrong result is marked.
    """
    eff = more_of(line, "eff")
    parts = ("" if eff is None else f"eff {eff:.2f}", _memory(line), "WRONG" if is_wrong(line) else "")
    return " ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Returns a time with three significant digits, in s, ms or us."""
    return _with_unit(seconds, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)))


def memory(count: float) -> str:
    """Returns a number of bytes with three significant digits, in GB, MB or kB."""
    return _with_unit(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)))


def _with_unit(number: float, units: Sequence[tuple[str, float]]) -> str:
    """Returns a number with three significant digits and its unit.

    `units` has the name and the factor of each unit, the largest first. The unit is the first one in which the number
    is at least 1, or the last one if there is none.
    """
    unit, factor = next((each for each in units if number >= each[1]), units[-1])
    number /= factor
    digits = f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
    return f"{digits} {unit}"
