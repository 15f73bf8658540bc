"""Figures from the records alone: time and memory over the batch, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from contenders import OURS, roster
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from record import Line
from tables import duration, size
from variants import BOTH, FORWARD, PLAIN, VARIANTS

# Okabe and Ito's colours, which stay apart for every kind of colour vision; yellow is too light for a line.
_COLOURS = ("#D55E00", "#0072B2", "#000000", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# Positions in the two tuples above, so that nobody's looks depend on who else was measured.
_CONTENDERS = tuple(dict.fromkeys(contender.name for contender in roster()))
_VARIANTS = tuple(variant.name for variant in VARIANTS)
# Where the largest value is less than this many times the smallest, there is room for three ticks a decade.
_DENSE_TICKS = 300
# More sizes than these, written level, would touch each other.
_LEVEL_LABELS = 5
_WIDTHS = {"fused": 2.6, "chunked": 1.8}
_LOOKS: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "savefig.dpi": 150,
    # Else every drawing of the same records is another file.
    "svg.hashsalt": "contrastive",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: what is drawn, of which pass, and how its numbers are written."""

    title: str
    pass_: str
    value: Callable[[Line], float | None]
    written: Callable[[float], str]
    limited: bool


def _time(line: Line) -> float | None:
    return None if line.seconds is None else line.seconds.median


_PANELS = (
    Panel("Forward: time", FORWARD, _time, duration, limited=True),
    Panel("Forward + backward: time", BOTH, _time, duration, limited=True),
    Panel("Forward + backward: extra memory", BOTH, lambda line: line.peak_bytes, size, limited=False),
)


def draw(lines: Sequence[Line], folder: Path) -> Iterator[Path]:
    """For each device, type and width: plain InfoNCE by everybody, and the variants of ours beside SigLIP.

    Yields:
        The paths written, an SVG and a PNG for each figure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place in dict.fromkeys(line.place for line in lines):
        here = [line for line in lines if line.place == place and line.skipped is None]
        plain = [line for line in here if line.variant == PLAIN.name]
        varied = [line for line in here if line.contender in OURS or line.variant != PLAIN.name]
        varied = varied if len({line.variant for line in varied}) > 1 else []
        for name, title, chosen in (
            ("contrastive", "Symmetric InfoNCE", plain),
            ("contrastive-variants", "Mined positives and the sigmoid loss", varied),
        ):
            if chosen:
                device, dtype, width = place
                heading = f"{title}, {device}, {dtype}, width {width}"
                yield from _saved(chosen, heading, folder / f"{name}-{_slug(device)}-{dtype}-{width}")


def _saved(lines: Sequence[Line], heading: str, path: Path) -> Sequence[Path]:
    targets = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")]
    with mpl.rc_context(_LOOKS):
        figure = _figure(lines, heading)
        for target in targets:
            # Without a date the same records are the same file.
            figure.savefig(target, bbox_inches="tight", metadata={"Date": None} if target.suffix == ".svg" else None)
    return targets


def _slug(device: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in device.lower()).split())


def _figure(lines: Sequence[Line], title: str) -> Figure:
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    styles = _styles(lines)
    sizes = sorted({line.rows for line in lines if line.rows is not None})
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        _draw_panel(axes, panel, lines, styles)
        _dress(axes, panel, sizes)
        artists, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, artists, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def _styles(lines: Sequence[Line]) -> Mapping[str, Mapping[str, Any]]:
    """Of each label: the marker says who; so does the colour, unless variants have to be told apart."""
    told_apart = len({line.variant for line in lines}) > 1
    styles: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        who = _CONTENDERS.index(line.contender)
        colour = _VARIANTS.index(line.variant) if told_apart else who
        styles[line.label] = {
            "color": _COLOURS[colour % len(_COLOURS)],
            "marker": _MARKERS[who % len(_MARKERS)],
            "linewidth": _WIDTHS.get(line.contender, 1.4),
            "linestyle": "-" if line.contender in OURS else (0, (5, 1.5)),
            "zorder": 3 if line.contender in OURS else 2,
        }
    return styles


def _draw_panel(axes: Axes, panel: Panel, lines: Sequence[Line], styles: Mapping[str, Mapping[str, Any]]) -> None:
    chosen = [line for line in lines if line.pass_ == panel.pass_]
    for label, style in styles.items():
        points = sorted((line.rows or 0, panel.value(line)) for line in chosen if line.label == label)
        points = [(rows, value) for rows, value in points if value]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
    if panel.limited:
        _draw_limit(axes, [line for line in chosen if line.variant == PLAIN.name])


def _draw_limit(axes: Axes, lines: Sequence[Line]) -> None:
    """The time that the fewest operations take at the rate of a square matrix product in the same rounds."""
    limits: dict[int, list[float]] = {}
    for line in lines:
        if line.rows and line.floor_flops and line.matmul_flops_per_s:
            limits.setdefault(line.rows, []).append(line.floor_flops / line.matmul_flops_per_s)
    rows = sorted(limits)
    axes.plot(
        rows,
        [median(limits[size]) for size in rows],
        color="0.45",
        linewidth=1.2,
        linestyle=":",
        label="limit: fewest operations with no\nmatrix kept, at the rate of a product\n(plain InfoNCE)",
    )


def _dress(axes: Axes, panel: Panel, sizes: Sequence[int]) -> None:
    axes.set(title=panel.title, xlabel="batch (rows)", xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(_whole))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(sizes) > _LEVEL_LABELS:
        axes.tick_params(axis="x", rotation=30)

    def written(value: float, _: int | None) -> str:
        return _short(panel.written(value))

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _DENSE_TICKS * low else (1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(written))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _whole(value: float, _: int | None) -> str:
    return f"{value:,.0f}"


def _short(written: str) -> str:
    """A tick is a round number: `10.0 ms` says no more than `10 ms`."""
    number, unit = written.split()
    return f"{float(number):g} {unit}"
