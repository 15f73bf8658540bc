"""Figures from the records alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.record import Line

from .tables import stream_title

# Okabe and Ito's colours, which stay apart for every kind of colour vision.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#999999", "#E69F00", "#56B4E9", "#000000")
_LOOKS: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "savefig.dpi": 130,
}
_MIXED = (
    ("Stored neighbours in one batch", "value"),
    ("Variance of the share of a class", "classes"),
    ("Displacement", "displacement"),
)


def draw(name: str, lines: Sequence[Line], folder: Path) -> Iterator[Path]:
    """The figures of a file of records, by its name without the ending; some have none."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [line for line in lines if line.value is not None]
    with mpl.rc_context(_LOOKS):
        if name == "stream":
            yield from _streams(measured, folder)
        if name == "shuffle" and measured:
            yield _saved(_mixing(measured), folder / "shuffle.png")


def _streams(lines: Sequence[Line], folder: Path) -> Iterator[Path]:
    for title in dict.fromkeys(map(stream_title, lines)):
        here = [line for line in lines if stream_title(line) == title]
        setting = here[0].setting
        parts = [setting["store"], "shuffled" if setting["shuffle"] else "in-order"]
        parts += ["delivered"] if setting["delivered"] else []
        yield _saved(_bars(here, f"{title}\n{here[0].device}"), folder / f"stream-{'-'.join(parts)}.png")


def _bars(lines: Sequence[Line], title: str) -> Figure:
    """Rates above, CPU time below; bytes at the left, decoded at the right."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    axes = figure.subplots(2, 2)
    for column, decode in enumerate((False, True)):
        here = [line for line in lines if line.setting["decode"] == decode]
        what = "decoded" if decode else "bytes"
        _bar(axes[0, column], here, f"Samples per second, {what}", "value")
        _bar(axes[1, column], here, f"CPU seconds for 1,000 samples, {what}", "cpu_s_per_1000_samples")
    return figure


def _bar(axes: Axes, lines: Sequence[Line], title: str, quantity: str) -> None:
    names = list(dict.fromkeys(line.contender for line in lines))
    workers = sorted({line.setting["workers"] for line in lines})
    width = 0.8 / max(1, len(workers))
    for number, count in enumerate(workers):
        for line in (line for line in lines if line.setting["workers"] == count):
            found, place = _quantity(line, quantity), names.index(line.contender)
            error = [[found["median"] - found["low_quartile"]], [found["high_quartile"] - found["median"]]]
            bars = axes.bar(
                place + (number - (len(workers) - 1) / 2) * width,
                found["median"],
                width * 0.94,
                yerr=error,
                color=_COLOURS[place % len(_COLOURS)],
                alpha=1.0 if number else 0.55,
                error_kw={"elinewidth": 1, "ecolor": "0.25"},
            )
            axes.bar_label(bars, [_written(found["median"])], fontsize=8, padding=2)
    axes.set_title(f"{title}\n(pale: {workers[0]} process)" if len(workers) > 1 else title)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n").replace("-", "-\n") for name in names], fontsize=8)
    axes.margins(y=0.12)


def _mixing(lines: Sequence[Line]) -> Figure:
    setting = lines[0].setting
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    figure.suptitle(
        f"Shuffling {setting['samples']:,} samples, batches of {setting['batch']:,}: times what a perfect shuffle has",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    groups = list(dict.fromkeys((line.contender, line.setting["shard_samples"]) for line in lines))
    for axes, (title, quantity) in zip(figure.subplots(1, 3), _MIXED, strict=True):
        for number, (who, shard) in enumerate(groups):
            here = [line for line in lines if (line.contender, line.setting["shard_samples"]) == (who, shard)]
            points = sorted((line.setting["size"], _quantity(line, quantity)["median"]) for line in here)
            style = "-o" if who == "emocap_shards" else "--s"
            axes.plot(*zip(*points, strict=True), style, color=_COLOURS[number], label=f"{who}, shards of {shard:,}")
        axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
        axes.set(title=title, xscale="log", xlabel="window (ours) or buffer (webdataset), samples")
        if quantity == "displacement":
            axes.set_ylim(0, 1.2)
        else:
            axes.set_yscale("log")
        axes.grid(which="major", color="0.92")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _quantity(line: Line, name: str) -> dict[str, float]:
    assert line.value is not None, "only measured lines are drawn"
    spread: Any = line.value if name == "value" else (line.more or {})[name]
    return spread if isinstance(spread, dict) else {each: getattr(spread, each) for each in spread.__slots__}


def _written(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, bbox_inches="tight")
    return path
