"""Draws the figures of a loss's records: time and memory against a size of the batch, on logarithmic axes.

`draw` groups the records by device, dtype and width. A figure has the panels `_PANELS`, and each panel has one curve
for each implementation and variant of the loss.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.harness.plots import COLOURS, titled
from benchmarks.harness.record import Measurement, grouped

from .subject import BOTH, FORWARD, OURS, Size
from .subjects import GLOBAL, PLAIN, REGION
from .tables import duration, label_of, memory, more_of, place_of, size_of, sizes_of


@dataclass(frozen=True, slots=True)
class Sweep:
    """A size that varies within a figure while other quantities are fixed.

    Attributes:
        name: The suffix of the names of the files.
        label: The label of the axis.
        value: Returns the size that varies.
        fixed: Returns the quantities that are fixed, such as the number of sentences of an image.
        fixed_in_words: Returns a text that names these quantities and their values.
    """

    name: str
    label: str
    value: Callable[[Size], int]
    fixed: Callable[[Size], tuple[float, ...]] = lambda _: ()
    fixed_in_words: Callable[[Size], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class Topic:
    """The titles of the figures of a loss, and the sizes that vary in them.

    Attributes:
        plain: The title of the figure of the plain loss.
        varied: The title of the figure of all variants.
        limited: The name of the loss whose shortest possible time the figures show (see `_draw_limit`).
        sweeps: The sizes that can be on the horizontal axis. If no size varies in the records, the first one is used.
    """

    plain: str
    varied: str
    limited: str
    sweeps: Sequence[Sweep]


TOPICS = {
    GLOBAL.what: Topic(
        plain="Symmetric InfoNCE",
        varied="Mined positives and the sigmoid loss",
        limited="plain InfoNCE",
        sweeps=(Sweep("", "batch (rows)", lambda size: size.rows),),
    ),
    REGION.what: Topic(
        plain="Local loss",
        varied="Local loss and other ways to compare images with sentences",
        limited="plain local loss",
        sweeps=(
            Sweep(
                "-rows",
                "images of the batch",
                lambda size: size.rows,
                lambda size: (size.regions[0], size.regions[1] / size.rows),
                lambda size: f"{size.regions[0]} patches and {size.regions[1] / size.rows:g} sentences an image",
            ),
            Sweep(
                "-sentences",
                "sentences of the batch",
                lambda size: size.regions[1],
                lambda size: (size.rows, size.regions[0]),
                lambda size: f"{size.rows:,} images of {size.regions[0]} patches",
            ),
            Sweep(
                "-patches",
                "patches of an image",
                lambda size: size.regions[0],
                lambda size: (size.rows, size.regions[1]),
                lambda size: f"{size.rows:,} images, {size.regions[1]:,} sentences",
            ),
        ),
    ),
}

_SUBJECTS = {subject.what: subject for subject in (GLOBAL, REGION)}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# (ratio, ticks): the ticks of a decade where the largest value is less than `ratio` times the smallest.
_TICKS = ((20, (1, 1.5, 2, 3, 5, 7)), (300, (1, 2, 5)), (float("inf"), (1, 3)))
# More labels than these would touch each other if they were horizontal.
_LEVEL_LABELS = 5
_WIDTHS = {"fused": 2.6, "chunked": 1.8}


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: The title.
        pass_: The pass whose measurements are drawn: "forward" or "forward+backward".
        value: Returns the drawn value; None if a measurement has none.
        written: Returns a value with its unit, as text.
        limited: Whether the shortest possible time is drawn (see `_draw_limit`).
    """

    title: str
    pass_: str
    value: Callable[[Measurement], float | None]
    written: Callable[[float], str]
    limited: bool


def _time(line: Measurement) -> float | None:
    """Returns the median time of a measurement."""
    return None if line.value is None else line.median


_PANELS = (
    Panel("Forward: time", FORWARD, _time, duration, limited=True),
    Panel("Forward + backward: time", BOTH, _time, duration, limited=True),
    Panel("Forward + backward: extra memory", BOTH, lambda line: more_of(line, "peak_bytes"), memory, limited=False),
)


def draw(lines: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """Draws two figures for each combination of a loss, a device, a dtype, a width and a `Sweep`.

    A sweep chooses the size on the horizontal axis, such as the number of rows. The first figure shows the plain loss
    of all implementations. The second one shows our plain loss, and the other variants of all implementations; it is
    left out if there is only one variant.

    Yields:
        (name of a file, figure). Each figure is yielded twice: for an SVG file and for a PNG file.
    """
    for (what, device, dtype, width), measured in grouped(lines, place_of).items():
        here = [line for line in measured if line.skipped is None]
        plain = [line for line in here if line.setting["variant"] == PLAIN.name]
        varied = [line for line in here if line.contender in OURS or line.setting["variant"] != PLAIN.name]
        varied = varied if len({line.setting["variant"] for line in varied}) > 1 else []
        topic, name = TOPICS[what], _SUBJECTS[what].records
        for kind, title, chosen in (("", topic.plain, plain), ("-variants", topic.varied, varied)):
            for sweep, fixed, swept in _sweeps(topic, chosen):
                heading = ", ".join([title, *([fixed] if fixed else []), device, dtype, f"width {width}"])
                figure = _figure(swept, sweep, heading)
                for suffix in ("svg", "png"):
                    yield f"{name}{kind}{sweep.name}-{_slug(device)}-{dtype}-{width}.{suffix}", figure


def _sweeps(topic: Topic, lines: Sequence[Measurement]) -> Iterator[tuple[Sweep, str, Sequence[Measurement]]]:
    """Yields one sweep at a time: the `Sweep`, a text about the fixed sizes, and the records to draw.

    These records differ in no size but the one that varies.
    """
    sizes = sizes_of(lines)
    groups = [(sweep, longest(sweep, sizes)) for sweep in topic.sweeps] if sizes else []
    for sweep, group in [(sweep, group) for sweep, group in groups if len(group) > 1] or groups[:1]:
        yield sweep, sweep.fixed_in_words(group[0]), [line for line in lines if size_of(line) in group]


def longest(sweep: Sweep, sizes: Iterable[Size]) -> Sequence[Size]:
    """Returns the largest group of sizes that agree in the fixed quantities of `sweep`.

    Of groups with equally many sizes, the one that contains the largest size is returned.
    """
    groups: dict[tuple[float, ...], list[Size]] = {}
    for each in sorted(sizes, key=lambda each: each.order):
        groups.setdefault(sweep.fixed(each), []).append(each)
    return max(groups.values(), key=lambda group: (len(group), group[-1].order))


def _slug(device: str) -> str:
    """Returns the name of a device in a form that suits file names, such as nvidia-h100."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in device.lower()).split())


def _figure(lines: Sequence[Measurement], sweep: Sweep, title: str) -> Figure:
    """Draws all panels of a sweep. The size that varies is on the horizontal axis, and one legend serves all panels."""
    figure = titled(title, 15, 4.6, size=12)
    styles = _styles(lines)
    sizes = sorted({sweep.value(size) for size in sizes_of(lines)})
    handles: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        _draw_panel(axes, panel, sweep, lines, styles)
        _dress(axes, panel, sweep, sizes)
        artists, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, artists, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def _styles(lines: Sequence[Measurement]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the style of each curve, by the label of the curve (`label_of`).

    The marker shows the contender (implementation of a loss). The colour shows the variant of the loss, or the
    contender if there is only one variant. Markers and colours are assigned in the order of `Subject.contenders` and
    `Subject.variants`, so they do not depend on which contenders were measured.
    """
    subject = _SUBJECTS[lines[0].what]
    contenders = list(dict.fromkeys(contender.name for contender in subject.contenders))
    variants = [variant.name for variant in subject.variants]
    several = len({line.setting["variant"] for line in lines}) > 1
    styles: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        who = contenders.index(line.contender)
        colour = variants.index(line.setting["variant"]) if several else who
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
    """Draws a curve for each label in `styles`, and the shortest possible time if the panel shows it."""
    chosen = [line for line in lines if line.setting["pass"] == panel.pass_]
    for label, style in styles.items():
        drawn = [(size_of(line), panel.value(line)) for line in chosen if label_of(line) == label]
        points = sorted((sweep.value(at), value) for at, value in drawn if at is not None and value)
        if points:
            axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
    if panel.limited:
        _draw_limit(axes, sweep, [line for line in chosen if line.setting["variant"] == PLAIN.name])


def _draw_limit(axes: Axes, sweep: Sweep, lines: Sequence[Measurement]) -> None:
    """Draws the limit: the shortest time in which the plain loss could be computed.

    It is the fewest floating-point operations that the loss needs (`floor_flops`), divided by the rate (FLOP/s) of a
    square matrix product that was measured together with the loss.
    """
    limits: dict[int, list[float]] = {}
    for line in lines:
        size, rate = size_of(line), more_of(line, "matmul_flops_per_s")
        if size is not None and rate:
            limits.setdefault(sweep.value(size), []).append(more_of(line, "floor_flops") / rate)
    if not limits:
        return
    what = TOPICS[lines[0].what].limited
    axes.plot(
        sorted(limits),
        [median(limits[each]) for each in sorted(limits)],
        color="0.45",
        linewidth=1.2,
        linestyle=":",
        label=f"limit: fewest operations with no\nmatrix kept, at the rate of a product\n({what})",
    )


def _dress(axes: Axes, panel: Panel, sweep: Sweep, sizes: Sequence[int]) -> None:
    """Sets the title, the scales, the ticks and the grid of one panel."""
    axes.set(title=panel.title, xlabel=sweep.label, xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    if len(sizes) > _LEVEL_LABELS:
        axes.tick_params(axis="x", rotation=30)

    def written(value: float, _: int | None) -> str:
        """Returns the label of a tick without trailing zeros: `10 ms` instead of `10.0 ms`."""
        number, unit = panel.written(value).split()
        return f"{float(number):g} {unit}"

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=next(ticks for most, ticks in _TICKS if high < most * low)))
    axes.yaxis.set_major_formatter(FuncFormatter(written))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
