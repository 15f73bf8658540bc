"""Provides the examples of a benchmark from a user's copy, in the layout in which it lies on the disk.

The labels of an example are those of its card's target: `class` is the name of the class, numbers have their own names,
and action unit 12 is `AU12`, with the values 0 and 1.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from emocap_shards.inspecting.label_values import LabelValues
from emocap_shards.local_files import open_regular
from emocap_shards.sample import Caption

from emocap_pretrain.benchmarks.card import Card, ClassTarget, NumbersTarget
from emocap_pretrain.benchmarks.frames import SEGMENTS, middles, pictures
from emocap_pretrain.benchmarks.item import CroppedImage, FrameFiles, Item, Media, VideoFile
from emocap_pretrain.benchmarks.reading.attribute_reader import AttributeReader
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.transform import BICUBIC, Resize, cropped
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.examples import Example, LeftOut
from emocap_pretrain.evaluation.prompt_set import has_whole_prompts
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Crop

CLASS = "class"  # The name of the label with the class.
TRAIN = "train"  # The split of a card from which probes learn.
VALID = ("valid", "val", "validation")  # The splits of a card on which choices are made, unless it is the scored one.
_HELD_OUT = 10  # One in so many examples, or persons, is held out of training if the card has no split for choices.
_BLOCK = 1 << 20

Part = Literal["all", "held out", "others"]


@dataclass(frozen=True, slots=True, eq=False)
class MediaContent:
    """The image or video of an item."""

    media: Media

    def digest(self) -> bytes:
        """Returns a digest of the bytes of the files that are read, or of the array, and of the frames or rectangle.

        Of a video whose frames are files, only the chosen frames are read.

        Raises:
            DataError: If a file cannot be read.
        """
        digest = hashlib.blake2b(digest_size=32)
        match self.media:
            case FrameFiles(paths):
                chosen = middles(len(paths))
                digest.update(f"frames {chosen}".encode())
                for number in dict.fromkeys(chosen):
                    _add_file(digest, paths[number])
            case VideoFile(path):
                digest.update(f"segments {SEGMENTS}".encode())
                _add_file(digest, path)
            case CroppedImage(path, left, top, right, bottom):
                digest.update(f"rectangle {left} {top} {right} {bottom}".encode())
                _add_file(digest, path)
            case Path() as path:
                _add_file(digest, path)
            case pixels:
                digest.update(f"grey {pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
        return digest.digest()

    def crops(self, pixels: int, crop: ImageCrop, resize: Resize = BICUBIC) -> Sequence[Crop]:
        """Returns the crop of an image, or of each chosen frame of a video.

        Raises:
            DataError: If the medium cannot be decoded.
        """
        return [cropped(each, pixels, crop, resize) for each in pictures(self.media)]


@dataclass(frozen=True)
class BenchmarkSource:
    """Provides the examples of one split of a copy of a benchmark.

    Attributes:
        card: The benchmark.
        root: The folder of the copy.
        reader: The reader of the copy's layout (`reading.choice.fitting`).
        split: The split by its name on the card.
        fold: Number of the fold, from 1; None if the benchmark has none.
        part: Whether all examples are provided, or only those that are held out of training for choices, or only the
            others. Whole persons are held out if the layout names them.
        may_have_gaps: Whether examples may be left out. Otherwise one that cannot be decoded ends the evaluation.
        with_attributes: Whether the labels of an example contain the attributes of its person (`Card.attributes`).
    """

    card: Card
    root: Path
    reader: LayoutReader
    split: str
    fold: int | None = None
    part: Part = "all"
    may_have_gaps: bool = True
    with_attributes: bool = False

    @property
    def images_each(self) -> int:
        return SEGMENTS if self.card.media == "video" else 1

    @property
    def address(self) -> str:
        fold = f", fold {self.fold}" if self.fold else ""
        part = "" if self.part == "all" else f", {self.part}"
        return f"{self.card.name}, {self.split}{fold}{part}"

    def __len__(self) -> int:
        return len(self._items)

    def examples(self, numbers: range) -> Sequence[Example | LeftOut]:
        """Returns the items of the copy with these numbers, as examples.

        An item that the layout reader has found to be wrong, or a video without frames, is a `LeftOut`. A medium that
        cannot be decoded is found only when its crops are computed.

        Raises:
            DataError: If the copy lacks the split, or a file of labels cannot be read.
        """
        return [_example(item, self._attributes_of(item)) for item in map(self._items.__getitem__, numbers)]

    def label_values(self, name: str, *, seconds: float | None = None) -> LabelValues:  # noqa: ARG002 - all labels are in memory
        labels = [_labels(item) for item in self._items if isinstance(item, Item)]
        values = Counter(each[name] for each in labels if name in each)
        names = tuple(dict.fromkeys(key for each in labels for key in each))
        return LabelValues(values, names, len(self), len(self))

    def digest(self) -> str:
        """Returns a digest of the names and labels of all items in their order, by which ranks compare their copies."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self._items:
            seen = (item.kind,) if isinstance(item, Problem) else (item.key, sorted(_labels(item).items()), item.group)
            digest.update(repr(seen).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def _attributes_of(self, item: Item | Problem) -> Mapping[str, str | float]:
        return {} if self._attributes is None or isinstance(item, Problem) else self._attributes.of(item)

    @cached_property
    def _attributes(self) -> AttributeReader | None:
        described = self.card.attributes
        return AttributeReader(described, self.root) if self.with_attributes and described else None

    @cached_property
    def _items(self) -> tuple[Item | Problem, ...]:
        found = self.reader.items(self.root, self.split, self.fold)
        if self.part == "all":
            return tuple(found)
        return tuple(item for item in found if _is_held_out(item) == (self.part == "held out"))


def splits_of(card: Card) -> dict[SplitName, tuple[str, Part]]:
    """Returns the split of a card, and the part of this split, from which each split of an evaluation is read.

    If the card has no split for choices (`valid`), about one in ten of its training examples, or of their persons, is
    held out as this split. If the card has no split for training, the result has only the scored split.
    """
    found: dict[SplitName, tuple[str, Part]] = {"test": (card.scored, "all")}
    if TRAIN in card.splits:
        choices = [name for name in VALID if name in card.splits and name != card.scored]
        found["train"] = (TRAIN, "all" if choices else "others")
        found["valid"] = (choices[0], "all") if choices else (TRAIN, "held out")
    return found


def sources_of(
    card: Card, root: Path, reader: LayoutReader, fold: int | None = None, *, with_attributes: bool = False
) -> dict[SplitName, BenchmarkSource]:
    """Returns the source of each split that the card has for an evaluation (`splits_of`).

    With `with_attributes`, the scored examples have the attributes of their persons.
    """
    return {
        name: BenchmarkSource(card, root, reader, split, fold, part, with_attributes=with_attributes and name == "test")
        for name, (split, part) in splits_of(card).items()
    }


def settings_of(settings: EvaluationConfig, card: Card) -> EvaluationConfig:
    """Returns the settings of an evaluation with the label, the classes and the names of numbers of a card.

    The values of the card replace those of the settings. But if the settings name the same classes as the card, the
    words or prompts that the settings give to these classes are kept.

    Some settings have whole prompts: `classes` is given, `templates` is only `{}`, and no set of prompts is named. The
    words of a class are then its prompts. Two such cases are refused (Raises). A compound class, such as "happily
    surprised", consists of several simple classes.

    Raises:
        ConfigError: If the settings have whole prompts, and either their classes are not those of the card, or the card
            has compound classes and `compound=parts` is set, which would ignore the prompts of the compound classes.
    """
    changes: dict[str, object] = {"label": CLASS}
    if isinstance(card.target, ClassTarget):
        own, classes = settings.classes or {}, card.target.classes
        are_whole = has_whole_prompts(settings)
        if are_whole and settings.compound == "parts" and card.target.parts:
            raise ConfigError(
                f"benchmark {card.name} has compound classes, and compound=parts ignores their own prompts: leave it "
                "out, or give templates or a set of prompts."
            )
        if set(own) != set(classes):
            if are_whole:
                raise ConfigError(
                    f"the prompts are for the classes {', '.join(own)}, and benchmark {card.name} has the classes "
                    f"{', '.join(classes)}."
                )
            own = dict(classes)
        changes["classes"] = {name: own[name] for name in classes}
        changes["parts"] = card.target.parts
    if isinstance(card.target, NumbersTarget):
        changes["numbers"] = card.target.names
    return settings.model_copy(update=changes)


def _example(item: Item | Problem, attributes: Mapping[str, str | float]) -> Example | LeftOut:
    if isinstance(item, Problem):
        return LeftOut(item.place, item.kind.removeprefix("left out: "))
    caption = () if item.caption is None else (Caption(item.caption, (), ""),)
    content = MediaContent(item.media)
    missing = _missing(item.media)
    if missing:
        return LeftOut(item.key, missing)
    return Example(item.key, content, {**attributes, **_labels(item)}, caption, item.group, item.question)


def _missing(media: Media) -> str | None:
    return "video without frames" if isinstance(media, FrameFiles) and not media.paths else None


def _labels(item: Item) -> dict[str, str | float]:
    labels: dict[str, str | float] = {name: float(value) for name, value in item.numbers.items()}
    labels |= {f"AU{unit}": float(is_shown) for unit, is_shown in item.units.items()}
    return labels if item.class_name is None else labels | {CLASS: item.class_name}


def _is_held_out(item: Item | Problem) -> bool:
    name = item.place if isinstance(item, Problem) else item.group or item.key
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT == 0


def _add_file(digest: "hashlib.blake2b", path: Path) -> None:
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123 - a descriptor
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
