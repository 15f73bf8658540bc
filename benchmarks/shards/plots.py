"""Draws figures from the records."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.plots import COLOURS, saved, titled
from benchmarks.harness.record import Measurement

from .host import OURS
from .tables import stream_title

_MIXED = (
    ("Stored neighbours in one batch", "value"),
    ("Variance of the share of a class", "classes"),
    ("Displacement", "displacement"),
)


def streams(lines: Sequence[Measurement], folder: Path) -> Iterator[Path]:
    measured = [line for line in lines if line.value is not None]
    for title in dict.fromkeys(map(stream_title, measured)):
        here = [line for line in measured if stream_title(line) == title]
        setting = here[0].setting
        parts = [setting["store"], "shuffled" if setting["shuffle"] else "in-order"]
        parts += ["delivered"] if setting["delivered"] else []
        heading = f"{title}\n{here[0].device}"
        yield from saved(partial(_bars, here, heading), folder / f"stream-{'-'.join(parts)}.png")


def shuffle(lines: Sequence[Measurement], folder: Path) -> Iterator[Path]:
    yield from saved(partial(_mixing, lines), folder / "shuffle.png")


def _bars(lines: Sequence[Measurement], title: str) -> Figure:
    """Draws rates above and CPU time below; bytes on the left, decoded samples on the right."""
    figure = titled(title, 11, 6.4)
    axes = figure.subplots(2, 2)
    for column, decode in enumerate((False, True)):
        here = [line for line in lines if line.setting["decode"] == decode]
        what = "decoded" if decode else "bytes"
        _bar(axes[0, column], here, f"Samples per second, {what}", "value")
        _bar(axes[1, column], here, f"CPU seconds for 1,000 samples, {what}", "cpu_s_per_1000_samples")
    return figure


def _bar(axes: Axes, lines: Sequence[Measurement], title: str, quantity: str) -> None:
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


def _mixing(lines: Sequence[Measurement]) -> Figure:
    setting = lines[0].setting
    heading = f"Shuffling {setting['samples']:,} samples, batches of {setting['batch']:,}"
    figure = titled(f"{heading}: times what a perfect shuffle has", 13, 4.3)
    groups = list(dict.fromkeys((line.contender, line.setting["shard_samples"]) for line in lines))
    for axes, (title, quantity) in zip(figure.subplots(1, 3), _MIXED, strict=True):
        for number, (who, shard) in enumerate(groups):
            here = [line for line in lines if (line.contender, line.setting["shard_samples"]) == (who, shard)]
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
    return figure


def _written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
