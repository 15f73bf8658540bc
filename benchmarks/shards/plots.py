"""Draws the measurements of the suite `shards` as figures."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.plots import COLOURS, titled
from benchmarks.harness.record import Measurement, grouped

from .host import OURS
from .tables import stream_title

# The title of each axes, and the name of its value in the records.
_MIXED = (
    ("Stored neighbours in one batch", "value"),
    ("Variance of the share of a class", "classes"),
    ("Displacement", "displacement"),
)


def streams(lines: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """Draws a figure for each combination of store, shuffling (on or off) and delivery to the main process (on or off).

    Rates are above and CPU times below. Raw samples are on the left, and decoded samples on the right.
    """
    measured = [line for line in lines if line.value is not None]
    for title, here in grouped(measured, stream_title).items():
        figure = titled(f"{title}\n{here[0].device}", 11, 6.4)
        axes = figure.subplots(2, 2)
        for column, (decode, what) in enumerate(((False, "bytes"), (True, "decoded"))):
            chosen = [line for line in here if line.setting["decode"] == decode]
            _bar(axes[0, column], chosen, f"Samples per second, {what}", "value")
            _bar(axes[1, column], chosen, f"CPU seconds for 1,000 samples, {what}", "cpu_s_per_1000_samples")
        setting = here[0].setting
        parts = [setting["store"], "shuffled" if setting["shuffle"] else "in-order"]
        parts += ["delivered"] if setting["delivered"] else []
        yield f"stream-{'-'.join(parts)}.png", figure


def shuffle(lines: Sequence[Measurement]) -> Iterator[tuple[str, Figure]]:
    """Draws the quality of the shuffles against the size of the window (ours) or of the buffer (webdataset)."""
    setting = lines[0].setting
    heading = f"Shuffling {setting['samples']:,} samples, batches of {setting['batch']:,}"
    figure = titled(f"{heading}: times what a perfect shuffle has", 13, 4.3)
    groups = grouped(lines, lambda line: (line.contender, line.setting["shard_samples"]))
    for axes, (title, quantity) in zip(figure.subplots(1, 3), _MIXED, strict=True):
        for number, ((who, shard), here) in enumerate(groups.items()):
            points = sorted((line.setting["size"], line.spread_of(quantity).median) for line in here)
            style = "-o" if who == OURS.name else "--s"
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[number], label=f"{who}, shards of {shard:,}")
        axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
        axes.set(title=title, xscale="log", xlabel="window (ours) or buffer (webdataset), samples")
        if quantity == "displacement":
            axes.set_ylim(0, 1.2)
        else:
            axes.set_yscale("log")
        axes.grid(which="major", color="0.92")
    figure.axes[0].legend(frameon=False, fontsize=8)
    yield "shuffle.png", figure


def _bar(axes: Axes, lines: Sequence[Measurement], title: str, quantity: str) -> None:
    """Draws medians with quartiles as bars: a group for each library, and a bar for each number of workers."""
    names = list(dict.fromkeys(line.contender for line in lines))
    workers = sorted({line.setting["workers"] for line in lines})
    width = 0.8 / max(1, len(workers))
    for number, count in enumerate(workers):
        for line in (line for line in lines if line.setting["workers"] == count):
            found, place = line.spread_of(quantity), names.index(line.contender)
            error = [[found.median - found.low_quartile], [found.high_quartile - found.median]]
            bars = axes.bar(
                place + (number - (len(workers) - 1) / 2) * width,
                found.median,
                width * 0.94,
                yerr=error,
                color=COLOURS[place % len(COLOURS)],
                alpha=1.0 if number else 0.55,
                error_kw={"elinewidth": 1, "ecolor": "0.25"},
            )
            axes.bar_label(bars, [_written(found.median)], fontsize=8, padding=2)
    axes.set_title(f"{title}\n(pale: {workers[0]} process)" if len(workers) > 1 else title)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n").replace("-", "-\n") for name in names], fontsize=8)
    axes.margins(y=0.12)


def _written(value: float) -> str:
    """Returns a value as text, for the label of a bar."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
