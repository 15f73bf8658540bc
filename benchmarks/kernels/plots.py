"""Draws figures from the records: time and memory over the size of the batch, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.harness.plots import COLOURS, saved, titled
from benchmarks.harness.record import Measurement

from .results import label_of, more_of, place_of, size_of
from .size import Size
from .subject import OURS
from .subjects import SUBJECTS
from .tables import duration, size
from .topics import TOPICS, Sweep, Topic, longest
from .variants import BOTH, FORWARD, PLAIN

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# The position in these tuples gives colour and marker, so that they do not depend on what else was measured.
_CONTENDERS = {
    subject.what: tuple(dict.fromkeys(contender.name for contender in subject.roster()))
    for subject in SUBJECTS.values()
}
_VARIANTS = {subject.what: tuple(variant.name for variant in subject.variants) for subject in SUBJECTS.values()}
# (ratio, ticks): the ticks of a decade where the largest value is less than `ratio` times the smallest.
_TICKS = ((20, (1, 1.5, 2, 3, 5, 7)), (300, (1, 2, 5)), (float("inf"), (1, 3)))
# More labels than these would touch each other if they were horizontal.
_LEVEL_LABELS = 5
_WIDTHS = {"fused": 2.6, "chunked": 1.8}


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: what is drawn, for which pass, and how its numbers are formatted."""

    title: str
    pass_: str
    value: Callable[[Measurement], float | None]
    written: Callable[[float], str]
    limited: bool


def _time(line: Measurement) -> float | None:
    return None if line.value is None else line.median


_PANELS = (
    Panel("Forward: time", FORWARD, _time, duration, limited=True),
    Panel("Forward + backward: time", BOTH, _time, duration, limited=True),
    Panel("Forward + backward: extra memory", BOTH, lambda line: more_of(line, "peak_bytes"), size, limited=False),
)


def draw(lines: Sequence[Measurement], folder: Path) -> Iterator[Path]:
    """Draws the plain loss by all contenders, and our variants, for each device, type, width and size that varies.

    Yields:
        The paths written, an SVG and a PNG for each figure.
    """
    for place in dict.fromkeys(map(place_of, lines)):
        here = [line for line in lines if place_of(line) == place and line.skipped is None]
        plain = [line for line in here if line.setting["variant"] == PLAIN.name]
        varied = [line for line in here if line.contender in OURS or line.setting["variant"] != PLAIN.name]
        varied = varied if len({line.setting["variant"] for line in varied}) > 1 else []
        what, device, dtype, width = place
        topic = TOPICS[what]
        for name, title, chosen in (
            (topic.name, topic.plain, plain),
            (f"{topic.name}-variants", topic.varied, varied),
        ):
            for sweep, fixed, swept in _sweeps(topic, chosen):
                heading = ", ".join([title, *([fixed] if fixed else []), device, dtype, f"width {width}"])
                path = folder / f"{name}{sweep.name}-{_slug(device)}-{dtype}-{width}"
                paths = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")]
                yield from saved(partial(_figure, swept, sweep, heading), *paths)


def _sweeps(topic: Topic, lines: Sequence[Measurement]) -> Iterator[tuple[Sweep, str, Sequence[Measurement]]]:
    """Yields each size that varies, what is fixed in words, and the records in which nothing else varies."""
    sizes = _sizes(lines)
    groups = [(sweep, longest(sweep, sizes)) for sweep in topic.sweeps] if sizes else []
    for sweep, group in [(sweep, group) for sweep, group in groups if len(group) > 1] or groups[:1]:
        yield sweep, sweep.fixed_in_words(group[0]), [line for line in lines if size_of(line) in group]


def _sizes(lines: Sequence[Measurement]) -> set[Size]:
    return {size for line in lines if (size := size_of(line)) is not None}


def _slug(device: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in device.lower()).split())


def _figure(lines: Sequence[Measurement], sweep: Sweep, title: str) -> Figure:
    figure = titled(title, 15, 4.6, size=12)
    styles = _styles(lines)
    sizes = sorted({sweep.value(size) for size in _sizes(lines)})
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        _draw_panel(axes, panel, sweep, lines, styles)
        _dress(axes, panel, sweep, sizes)
        artists, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, artists, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def _styles(lines: Sequence[Measurement]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the style of each label. The marker shows the contender, the colour the variant if there are several."""
    told_apart = len({line.setting["variant"] for line in lines}) > 1
    styles: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        who = _CONTENDERS[line.what].index(line.contender)
        colour = _VARIANTS[line.what].index(line.setting["variant"]) if told_apart else who
        styles[label_of(line)] = {
            "color": COLOURS[colour % len(COLOURS)],
            "marker": _MARKERS[who % len(_MARKERS)],
            "linewidth": _WIDTHS.get(line.contender, 1.4),
            "linestyle": "-" if line.contender in OURS else (0, (5, 1.5)),
            "zorder": 3 if line.contender in OURS else 2,
        }
    return styles


def _draw_panel(
    axes: Axes, panel: Panel, sweep: Sweep, lines: Sequence[Measurement], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    chosen = [line for line in lines if line.setting["pass"] == panel.pass_]
    for label, style in styles.items():
        drawn = [(size_of(line), panel.value(line)) for line in chosen if label_of(line) == label]
        points = sorted((sweep.value(at), value) for at, value in drawn if at is not None and value)
        if points:
            axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
    if panel.limited:
        _draw_limit(axes, sweep, [line for line in chosen if line.setting["variant"] == PLAIN.name])


def _draw_limit(axes: Axes, sweep: Sweep, lines: Sequence[Measurement]) -> None:
    """Draws the time that the fewest operations take at the rate of a square matrix product in the same rounds."""
    limits: dict[int, list[float]] = {}
    for line in lines:
        size, rate = size_of(line), more_of(line, "matmul_flops_per_s")
        if size is not None and rate:
            limits.setdefault(sweep.value(size), []).append(more_of(line, "floor_flops") / rate)
    if not limits:
        return
    along = sorted(limits)
    what = TOPICS[lines[0].what].limited
    axes.plot(
        along,
        [median(limits[each]) for each in along],
        color="0.45",
        linewidth=1.2,
        linestyle=":",
        label=f"limit: fewest operations with no\nmatrix kept, at the rate of a product\n({what})",
    )


def _dress(axes: Axes, panel: Panel, sweep: Sweep, sizes: Sequence[int]) -> None:
    axes.set(title=panel.title, xlabel=sweep.label, xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(_whole))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(sizes) > _LEVEL_LABELS:
        axes.tick_params(axis="x", rotation=30)

    def written(value: float, _: int | None) -> str:
        return _short(panel.written(value))

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=next(ticks for most, ticks in _TICKS if high < most * low)))
    axes.yaxis.set_major_formatter(FuncFormatter(written))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _whole(value: float, _: int | None) -> str:
    return f"{value:,.0f}"


def _short(written: str) -> str:
    """Returns the text of a tick without trailing zeros: `10 ms` instead of `10.0 ms`."""
    number, unit = written.split()
    return f"{float(number):g} {unit}"
