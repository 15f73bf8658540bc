"""Draws the measurements of the suite `cluster` as figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from benchmarks.harness.plots import COLOURS, titled
from benchmarks.harness.record import Measurement, grouped

from .model import CONTINUES, FORMULA, SIMULATED, WAITS

_PARTS = {"towers_s": "towers", "loss_s": "loss", "vectors_s": "vectors", "gradients_s": "gradients"}


def scaling(lines: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """Draws the efficiency of weak scaling against the number of ranks, for each objective and network.

    A second panel shows the seconds of each part of a step, for the first objective and network in `lines`.
    """
    figure, (left, right) = _panels(
        "Weak scaling, a model: ViT-B/16, 256 rows a rank, bfloat16; 40 % of an H100's peak assumed"
    )
    groups = grouped(lines, lambda line: (line.setting["objective"], line.contender))
    for number, ((objective, fabric), here) in enumerate(groups.items()):
        style = "-o" if fabric == "ib400" else "--s"
        left.plot(*_points(here, "ranks"), style, color=COLOURS[number // 2], label=f"{objective}; {fabric}")
    left.set(title="Speed of a rank, beside one alone", xlabel="ranks", ylim=(0, 1.02))
    _percent(left)
    left.legend(frameon=False, fontsize=8)
    (objective, fabric), first = next(iter(groups.items()))
    parts = [[(line.more or {})[part] for line in first] for part in _PARTS]
    right.stackplot([line.setting["ranks"] for line in first], *parts, labels=list(_PARTS.values()), colors=COLOURS)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    right.set(title=f"Seconds of a step: {objective}, {fabric}", xlabel="ranks")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({line.setting["ranks"] for line in lines})))
        axes.xaxis.set_major_formatter("{x:,g}")
    yield "scaling.png", figure


def goodput(lines: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """Draws the goodput against the interval between saves, and against the rate of failures.

    Goodput is the share of the time of all nodes that is spent on work which a committed checkpoint contains.
    """
    nodes = lines[0].setting["nodes"]
    figure, (left, right) = _panels(f"Goodput of {nodes * 8:,} ranks on {nodes} nodes, a model and simulations of it")
    by_days = grouped(lines, lambda line: line.setting["node_mtbf_days"])
    for number, days in enumerate(sorted(by_days)):
        _over_interval(left, by_days[days], COLOURS[number], f"a node fails every {days:g} days")
    left.set(title="Over the interval of saving", xlabel="work between saves", xscale="log", ylim=(0.4, 1))
    left.set_xticks([10, 60, 600, 3600], ["10 s", "1 min", "10 min", "1 h"])
    left.plot([], [], "k-", label="formula")
    left.plot([], [], "kx", label="simulated")
    left.plot([], [], "k|", markersize=12, label="Young 1974")
    left.plot([], [], "ko", label="Daly 2006")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    _over_rate(right, lines)
    for axes in (left, right):
        _percent(axes)
    yield "goodput.png", figure


def _over_interval(axes: Axes, lines: Sequence[Measurement], colour: str, label: str) -> None:
    """Draws the goodput at one rate of failures against the interval between saves.

    The intervals that Young and Daly recommend are marked.
    """
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
    """Draws the goodput, with Daly's interval between saves, against the number of failures of the job in a day."""
    best = [line for line in lines if abs(line.setting["interval_s"] - (line.more or {})["daly_s"]) < 0.1]
    styles = {
        SIMULATED: ("-o", SIMULATED),
        CONTINUES: ("-s", f"{CONTINUES} for 1 h"),
        WAITS: ("--^", f"{WAITS}, which is absent for 1 h"),
    }
    for number, (who, (style, label)) in enumerate(styles.items()):
        here = [line for line in best if line.contender == who]
        rates = [line.setting["nodes"] / line.setting["node_mtbf_days"] for line in here]
        axes.plot(rates, [line.median for line in here], style, color=COLOURS[number], label=label)
    axes.set(title="Over the rate of failures, saving as Daly has it", xlabel="failures of the job a day", xscale="log")
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator([1, 3, 10, 30]))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _points(lines: Sequence[Measurement], along: str) -> tuple[list[float], list[float]]:
    """Returns the values of the setting `along` in ascending order, and the medians that belong to them."""
    found = sorted((line.setting[along], line.median) for line in lines)
    return [each for each, _ in found], [value for _, value in found]


def _panels(title: str) -> tuple[Figure, Any]:
    """Returns a figure with two axes side by side."""
    figure = titled(title, 12, 4.6)
    return figure, figure.subplots(1, 2)


def _percent(axes: Axes) -> None:
    """Shows the values of the vertical axis in percent, with a grid."""
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(which="major", color="0.92")
