"""Compares a user's copy of a benchmark with its card: splits, numbers of items, classes, missing files, alignment.

A copy is never called wrong because of a fact on the card whose source is unknown: this fact is reported as unchecked.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from emocap_pretrain.benchmarks.alignment import TITLES, judge, look
from emocap_pretrain.benchmarks.card import Card, ClassTarget, SplitFacts
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import Layout
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.errors import DataError

Verdict = Literal["equal", "different", "unchecked"]
EXAMPLES = 3  # Number of places that are named for each kind of problem.


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison of a copy with its card, or one kind of problem in the copy, as a sentence for the user."""

    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class CheckedSplit:
    """Holds what a split of a copy contains.

    Attributes:
        name: The split, with the number of the fold if there are folds.
        items: Number of items.
        by_class: Number of items of each class; empty if the target is not a class.
        problems: Number of problems by their kind, with the places of the first ones.
        findings: What the comparison with the card says.
    """

    name: str
    items: int
    by_class: Mapping[str, int] = field(default_factory=dict[str, int])
    problems: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict[str, tuple[int, tuple[str, ...]]])
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckedCopy:
    """Holds the result of `check`.

    Attributes:
        layout: The layout that fits the copy, in a few words.
        splits: The splits; for a benchmark with folds, one entry for each fold of a split.
        alignment: How the faces were cut out; None if no item is a whole image file, as in a benchmark of videos.
    """

    layout: str
    splits: tuple[CheckedSplit, ...]
    alignment: Finding | None = None

    @property
    def is_right(self) -> bool:
        """Returns whether nothing differs from the card. What is unchecked does not count."""
        found = [*(each for split in self.splits for each in split.findings), *filter(None, [self.alignment])]
        return not any(each.verdict == "different" for each in found)


def check(card: Card, root: Path, *, landmarks: Path | None = None) -> CheckedCopy:
    """Reads the labels of all splits of a copy and some of its images, and compares them with the card.

    If the labels of a split cannot be read, the result says so, and no error is raised.

    Args:
        card: The card.
        root: The folder of the copy.
        landmarks: The file of landmarks of the images (`emocap landmarks`); None if there is none.

    Raises:
        ConfigError: If no layout of the card fits the folder.
        DataError: If the file of landmarks cannot be read, or a file or folder that shows the layout (`fitting`).
    """
    layout, reader = fitting(card, root)
    folds = [None] if card.folds is None else list(range(1, card.folds + 1))
    images: list[Path] = []
    checked = [
        _checked(card, reader, root, name, facts, fold, images) for name, facts in card.splits.items() for fold in folds
    ]
    alignment = _alignment(layout, list(dict.fromkeys(images)), root, landmarks) if images else None
    return CheckedCopy(layout.about, tuple(checked), alignment)


def _alignment(layout: Layout, images: list[Path], root: Path, landmarks: Path | None) -> Finding:
    judgement = judge(look(images, root, landmarks))
    if judgement.kind is None:
        return Finding("unchecked", f"it is not known how the faces were cut out: {judgement.why}")
    text = f"the faces are {TITLES[judgement.kind]}: {judgement.why}"
    if layout.faces is None:
        return Finding("unchecked", text)
    wanted = "landmarks" if layout.faces == "aligned" else "whole"
    if judgement.kind == wanted:
        return Finding("equal", text)
    return Finding("different", f"{text}; this layout has images that are {TITLES[wanted]}")


def _checked(
    card: Card, reader: LayoutReader, root: Path, name: str, facts: SplitFacts, fold: int | None, images: list[Path]
) -> CheckedSplit:
    """Compares one split, or one fold of it, with the card, and appends its items that are image files to `images`."""
    title = name if fold is None else f"{name}, fold {fold}"
    items, by_class = 0, Counter[str]()
    problems: dict[str, tuple[int, tuple[str, ...]]] = {}
    try:
        for found in reader.items(root, name, fold):
            if isinstance(found, Item):
                items += 1
                if isinstance(found.media, Path):
                    images.append(found.media)
                if found.class_name is not None:
                    by_class[found.class_name] += 1
            else:
                _count(problems, found)
    except DataError as error:
        return CheckedSplit(title, 0, findings=(Finding("different", str(error)),))
    classes = {each: by_class[each] for each in card.target.classes} if isinstance(card.target, ClassTarget) else {}
    # What the layout leaves out on purpose is reported, and is no fault of the copy.
    faults = {kind: found for kind, found in problems.items() if not kind.startswith("left out")}
    findings = (
        *_sizes(facts, items, fold),
        *_classes(facts, classes),
        *(Finding("different", f"{count:,} x {kind}, such as {', '.join(at)}") for kind, (count, at) in faults.items()),
    )
    return CheckedSplit(title, items, classes, problems, findings)


def _count(problems: dict[str, tuple[int, tuple[str, ...]]], found: Problem) -> None:
    count, places = problems.get(found.kind, (0, ()))
    problems[found.kind] = count + 1, places if len(places) >= EXAMPLES else (*places, found.place)


def _sizes(facts: SplitFacts, items: int, fold: int | None) -> Iterator[Finding]:
    wanted = facts.samples[(fold or 1) - 1] if isinstance(facts.samples, tuple) else facts.samples
    if not items:
        yield Finding("different", "the split has no items")
    elif wanted is None or facts.source == "unknown":
        yield Finding("unchecked", f"{items:,} items; the right number is not known from a source")
    elif items == wanted:
        yield Finding("equal", f"{items:,} items, as {facts.source}")
    else:
        yield Finding("different", f"{items:,} items, but {wanted:,} were {facts.source}")


def _classes(facts: SplitFacts, found: Mapping[str, int]) -> Iterator[Finding]:
    """Yields a finding for each way in which the numbers of items by class differ from the card.

    If the numbers are those of the card, but belong to other classes, the copy numbers its classes in another order.
    Such a copy can be read without an error, and gives scores near chance.
    """
    if lacking := [name for name, count in found.items() if not count]:
        yield Finding("different", f"no item has the class {', '.join(lacking)}")
    wanted = {name: facts.by_class.get(name, 0) for name in found}
    if not facts.by_class or facts.source == "unknown" or found == wanted:
        return
    differing = [name for name in found if found[name] != wanted[name]]
    if sorted(found.values()) == sorted(wanted.values()):
        owners = {count: name for name, count in wanted.items()}
        swapped = [f"{name} has the number of {owners[found[name]]}" for name in differing]
        yield Finding("different", f"the classes have another order: {', '.join(swapped)}")
    else:
        odd = [f"{name} {found[name]:,} instead of {wanted[name]:,}" for name in differing]
        yield Finding("different", f"other numbers by class than {facts.source}: {', '.join(odd)}")
