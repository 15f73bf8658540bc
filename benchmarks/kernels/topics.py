"""The names of the figures of each subject, and the sizes over which they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .global_loss import GLOBAL
from .local_loss import REGION
from .size import Size


@dataclass(frozen=True, slots=True)
class Sweep:
    """One size that varies while the others are fixed.

    Attributes:
        name: Suffix of the names of the files.
        label: Label of the axis.
        value: Returns what varies.
        fixed: Returns what is fixed within one figure.
        fixed_in_words: Returns the same in words.
    """

    name: str
    label: str
    value: Callable[[Size], int]
    fixed: Callable[[Size], tuple[float, ...]] = lambda _: ()
    fixed_in_words: Callable[[Size], str] = lambda _: ""


@dataclass(frozen=True, slots=True)
class Topic:
    """The names of the figures of a subject.

    Attributes:
        name: Beginning of the names of their files.
        plain: Title of the figure of the plain loss.
        varied: Title of the figure of all variants.
        limited: The loss whose fewest operations are drawn as a limit.
        sweeps: The sizes over which figures are drawn; over the first one also if nothing varies.
    """

    name: str
    plain: str
    varied: str
    limited: str
    sweeps: Sequence[Sweep]


TOPICS = {
    GLOBAL.what: Topic(
        name="contrastive",
        plain="Symmetric InfoNCE",
        varied="Mined positives and the sigmoid loss",
        limited="plain InfoNCE",
        sweeps=(Sweep("", "batch (rows)", lambda size: size.rows),),
    ),
    REGION.what: Topic(
        name="region",
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


def longest(sweep: Sweep, sizes: Iterable[Size]) -> Sequence[Size]:
    """Returns the largest group of sizes that differ only in what `sweep` varies. Of equal groups, larger sizes win."""
    groups: dict[tuple[float, ...], list[Size]] = {}
    for each in sorted(sizes, key=lambda each: each.order):
        groups.setdefault(sweep.fixed(each), []).append(each)
    return max(groups.values(), key=lambda group: (len(group), group[-1].order))
