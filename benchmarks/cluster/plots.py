"""Draws figures from the records."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from benchmarks.harness.plots import COLOURS, saved, titled
from benchmarks.harness.record import Measurement

from .model import FORMULA, GOES_ON, SIMULATED, WAITS

_PARTS = {"towers_s": "towers", "loss_s": "loss", "vectors_s": "vectors", "gradients_s": "gradients"}


def scaling(lines: Sequence[Measurement], folder: Path) -> Iterator[Path]:
    yield from saved(partial(_scaling, lines), folder / "scaling.png")


def goodput(lines: Sequence[Measurement], folder: Path) -> Iterator[Path]:
    yield from saved(partial(_goodput, lines), folder / "goodput.png")


def _scaling(lines: Sequence[Measurement]) -> Figure:
    figure, (left, right) = _panels(
        "Weak scaling, a model: ViT-B/16, 256 rows a rank, bfloat16; 40 % of an H100's peak assumed"
    )
    groups = list(dict.fromkeys((line.setting["objective"], line.contender) for line in lines))
    for number, (objective, fabric) in enumerate(groups):
        here = [line for line in lines if (line.setting["objective"], line.contender) == (objective, fabric)]
        style = "-o" if fabric == "ib400" else "--s"
        left.plot(*_points(here, "ranks"), style, color=COLOURS[number // 2], label=f"{objective}; {fabric}")
    left.set(title="Speed of a rank, beside one alone", xlabel="ranks", ylim=(0, 1.02))
    _percent(left)
    left.legend(frameon=False, fontsize=8)
    objective, fabric = groups[0]
    _stack(right, [line for line in lines if (line.setting["objective"], line.contender) == (objective, fabric)])
    right.set(title=f"Seconds of a step: {objective}, {fabric}", xlabel="ranks")
    for axes in (left, right):
        _ticks(axes, sorted({line.setting["ranks"] for line in lines}))
    return figure


def _stack(axes: Axes, lines: Sequence[Measurement]) -> None:
    """The parts of a step on top of each other; of what travels, only what nothing hides."""
    ranks = [line.setting["ranks"] for line in lines]
    parts = [[(line.more or {})[part] for line in lines] for part in _PARTS]
    axes.stackplot(ranks, *parts, labels=list(_PARTS.values()), colors=COLOURS)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _goodput(lines: Sequence[Measurement]) -> Figure:
    nodes = lines[0].setting["nodes"]
    figure, (left, right) = _panels(f"Goodput of {nodes * 8:,} ranks on {nodes} nodes, a model and simulations of it")
    days = sorted({line.setting["node_mtbf_days"] for line in lines})
    for number, each in enumerate(days):
        here = [line for line in lines if line.setting["node_mtbf_days"] == each]
        _over_interval(left, here, COLOURS[number], f"a node fails every {each:g} days")
    left.set(title="Over the interval of saving", xlabel="work between saves", xscale="log", ylim=(0.4, 1))
    left.xaxis.set_major_locator(FixedLocator([10, 60, 600, 3600]))
    left.xaxis.set_major_formatter(FuncFormatter(_named))
    left.plot([], [], "k-", label="formula")
    left.plot([], [], "kx", label="simulated")
    left.plot([], [], "k|", markersize=12, label="Young 1974")
    left.plot([], [], "ko", label="Daly 2006")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    _over_rate(right, lines)
    for axes in (left, right):
        _percent(axes)
    return figure


def _over_interval(axes: Axes, lines: Sequence[Measurement], colour: str, label: str) -> None:
    formula = [line for line in lines if line.contender == FORMULA]
    axes.plot(*_points(formula, "interval_s"), "-", color=colour, label=label)
    simulated = [line for line in lines if line.contender == SIMULATED]
    axes.plot(*_points(simulated, "interval_s"), "x", color=colour)
    best: Mapping[str, float] = formula[0].more or {}
    along, heights = _points(formula, "interval_s")
    for name, marker, size in (("young_s", "|", 14), ("daly_s", "o", 6)):
        nearest = min(range(len(along)), key=lambda number: abs(along[number] - best[name]))
        axes.plot([best[name]], [heights[nearest]], marker, color=colour, markersize=size)


def _over_rate(axes: Axes, lines: Sequence[Measurement]) -> None:
    """Draws the goodput at Daly's interval, over failures of the job in a day."""
    best = [line for line in lines if abs(line.setting["interval_s"] - (line.more or {})["daly_s"]) < 0.1]
    styles = {SIMULATED: "-o", GOES_ON: "-s", WAITS: "--^"}
    for number, (who, style) in enumerate(styles.items()):
        here = [line for line in best if line.contender == who]
        rates = [line.setting["nodes"] / line.setting["node_mtbf_days"] for line in here]
        heights = [line.median for line in here]
        label = who if who == SIMULATED else f"{who}, which is absent for 1 h" if who == WAITS else f"{who} for 1 h"
        axes.plot(rates, heights, style, color=COLOURS[number], label=label)
    axes.set(title="Over the rate of failures, saving as Daly has it", xlabel="failures of the job a day", xscale="log")
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator([1, 3, 10, 30]))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _points(lines: Sequence[Measurement], along: str) -> tuple[list[float], list[float]]:
    found = sorted((line.setting[along], line.median) for line in lines)
    return [each for each, _ in found], [value for _, value in found]


def _panels(title: str) -> tuple[Figure, Any]:
    figure = titled(title, 12, 4.6)
    return figure, figure.subplots(1, 2)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(which="major", color="0.92")


def _ticks(axes: Axes, ranks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: int | None) -> str:
    return f"{value:,g}"


def _named(seconds: float, _: int | None) -> str:
    return {10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h"}[round(seconds)]
