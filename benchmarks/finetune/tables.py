"""Formats the comparison of recipes on FER+ as a table: one row for each recipe, with all of its seeds."""

from collections.abc import Hashable, Sequence
from statistics import fmean

from benchmarks.harness.record import Measurement, grouped
from benchmarks.harness.tables import table

from .compare import PROBED, PROMPTED


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns the table of the recalls: the mean over the seeds, then their range in brackets."""
    columns = ["", "minutes", "steps", "seeds", "prompts, UAR", "prompts, WAR", "probe, UAR", "probe, WAR"]
    return table(columns, (_row(those) for those in grouped(lines, _training).values()))


def _training(line: Measurement) -> Hashable:
    return line.contender, line.setting["minutes"]


def _row(lines: Sequence[Measurement]) -> list[str]:
    first, more = lines[0], lines[0].more or {}
    found = [[line for line in lines if line.what == what] for what in (PROMPTED, PROBED)]
    recalls = (values for those in found for values in (_uars(those), _wars(those)))
    about = [first.contender, f"{first.setting['minutes']:g}", str(more.get("steps", "")), str(len(found[0]))]
    return [*about, *(_spread(values) for values in recalls)]


def _uars(lines: Sequence[Measurement]) -> list[float]:
    return [line.value.median for line in lines if line.value]


def _wars(lines: Sequence[Measurement]) -> list[float]:
    return [line.more["war"] for line in lines if line.more]


def _spread(values: Sequence[float]) -> str:
    """Returns the mean of recalls in percent, and their range if there are several."""
    if not values:
        return ""
    several = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{several}"
