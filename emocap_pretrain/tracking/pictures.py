"""Draws the pictures of a run, a preview of samples and a confusion matrix; each names its run and dataset."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from emocap_shards.sample import Sample
from matplotlib.figure import Figure

from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.run_folder.results import ConfusionMatrix


def subject(run: str, data: Sequence[DatasetUse], *, step: int | None = None) -> str:
    """Returns the line of a picture that names its run and its datasets, with the digests of `emocap inspect`."""
    at = "" if step is None else f", step {step}"
    return f"run {run}{at} · " + " + ".join(f"{each.name} ({each.short_digest})" for each in data)


def preview(samples: Sequence[Sample], path: Path, *, of: str) -> None:
    """Draws up to eight samples with all parts of their captions, below the line `of` (see `subject`)."""
    rows = min(4, (len(samples) + 1) // 2)
    figure = Figure(figsize=(13, 2.6 * rows), layout="constrained")
    figure.suptitle(of, fontsize=9, x=0.01, ha="left", parse_math=False)
    grid = figure.subplots(rows, 4, squeeze=False, gridspec_kw={"width_ratios": [1, 2, 1, 2]})
    for axes in grid.flat:
        axes.axis("off")
    for sample, picture, words in zip(samples, grid[:, ::2].flat, grid[:, 1::2].flat, strict=False):
        picture.imshow(sample.image)
        picture.set_title(sample.key, fontsize=7, parse_math=False)
        words.text(0, 1, _caption(sample), fontsize=7, va="top", transform=words.transAxes, parse_math=False)
    figure.savefig(path, dpi=110)


def _caption(sample: Sample) -> str:
    parts = [f"Global: {sample.caption.global_}", *(f"· {text}" for text in sample.caption.local)]
    parts.append(f"Summary: {sample.caption.summary}")
    return "\n".join(textwrap.fill(part, 62, subsequent_indent="  ") for part in parts)


def confusion(matrix: ConfusionMatrix, path: Path, *, of: str) -> None:
    """Draws a confusion matrix into the file `path`: counts, coloured by their share of the true class.

    Args:
        matrix: The counts.
        path: The file that is written.
        of: A line below the title that names what was evaluated.
    """
    size = max(5.0, 0.8 * len(matrix.classes) + 2)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    counts = np.array(matrix.counts)
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    image = axes.imshow(share, vmin=0, vmax=1, cmap=mpl.colormaps["Blues"])
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(matrix.classes))
    axes.set_xticks(ticks, matrix.classes, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(ticks, matrix.classes, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{matrix.title}\n{of}", fontsize=10, parse_math=False)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=110)
