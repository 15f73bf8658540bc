"""Defines the colours and fonts of all figures, and saves figures to files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# The colours of Okabe and Ito, which readers with any kind of colour vision can tell apart. Their yellow is left out,
# because it is too light for a line.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#999999", "#E69F00", "#56B4E9", "#000000")
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "savefig.dpi": 130,
    # With a fixed salt, equal records give equal SVG files.
    "svg.hashsalt": "emocap",
}


def titled(title: str, width: float, height: float, *, size: float = 11) -> Figure:
    """Returns an empty figure of `width` x `height` inches; its title has `size` points and is aligned left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=size)
    return figure


def save(figures: Iterable[tuple[str, Figure]], folder: Path) -> Iterator[Path]:
    """Saves each figure under its file name into `folder`, and yields the paths.

    `figures` may be a generator that draws each figure when it is requested. The common style is set at that time, so
    these figures are drawn in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, figure in figures:
            # An SVG file without a date is equal for equal records.
            metadata = {"Date": None} if name.endswith(".svg") else None
            figure.savefig(folder / name, bbox_inches="tight", metadata=metadata)
            yield folder / name
