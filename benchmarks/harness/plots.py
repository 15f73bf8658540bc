"""Defines colours and fonts of all figures, and saves them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for every kind of colour vision; yellow is too light for a line.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#999999", "#E69F00", "#56B4E9", "#000000")
_LOOKS: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "savefig.dpi": 130,
    # Without it every drawing of the same records is another file.
    "svg.hashsalt": "emocap",
}


def titled(title: str, width: float, height: float, *, size: float = 11) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=size)
    return figure


def saved(draw: Callable[[], Figure], *paths: Path) -> Iterator[Path]:
    """Draws a figure in the common looks, saves it in the format of each path, and yields the paths."""
    with mpl.rc_context(_LOOKS):
        figure = draw()
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a date the same records are the same file.
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
            yield path
