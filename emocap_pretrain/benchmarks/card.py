"""Defines the card of a benchmark: what it contains, how it is scored, and where each of these facts was read.

A card is data: a YAML file in the folder `cards`. It does not contain the benchmark. Users have their own licensed
copies, and the layouts on the card say how such a copy lies on a disk (`layouts.py`). The names of classes are the
identity of a class. Numbers are codes of one layout, because public repositories number the same classes differently.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emocap_pretrain.benchmarks.attributes import Attributes
from emocap_pretrain.benchmarks.layouts import Layout
from emocap_pretrain.benchmarks.sources import CardSection, FactSource, SourcedText, Text

TargetKind = Literal["class", "numbers", "units", "caption", "question"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", max_length=40)]
ClassName = Annotated[str, Field(min_length=1, max_length=80)]
Size = Annotated[int, Field(ge=0)]


class ClassTarget(CardSection):
    """One class for each item, such as an expression.

    Attributes:
        classes: The words of each class in prompts, by the name of the class. The order is that of the benchmark's own
            documents, and of every table.
        parts: For a compound class such as "sadly fearful", the names of the simple emotions that it consists of.
        source: Where the names and their order were read.
    """

    kind: Literal["class"] = "class"
    classes: Annotated[dict[ClassName, Annotated[tuple[Text, ...], Field(min_length=1)]], Field(min_length=2)]
    parts: dict[ClassName, tuple[ClassName, ...]] = Field(default={})
    source: FactSource

    @model_validator(mode="after")
    def _parts_are_of_classes(self) -> "ClassTarget":
        if unknown := [name for name in self.parts if name not in self.classes]:
            raise ValueError(f"parts: {unknown[0]!r} is no class")
        return self


class NumbersTarget(CardSection):
    """Several numbers for each item, such as valence and arousal.

    Attributes:
        names: The names of the numbers.
        lowest: The smallest valid value, after division by `divisor`.
        highest: The largest valid value, after division by `divisor`.
        divisor: The number by which the numbers in the files are divided.
        invalid: The numbers in the files that mean that there is no value.
        source: Where the names and the limits were read.
    """

    kind: Literal["numbers"] = "numbers"
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    lowest: float
    highest: float
    divisor: Annotated[float, Field(gt=0)] = 1.0
    invalid: tuple[float, ...] = ()
    source: FactSource


class UnitsTarget(CardSection):
    """Action units of FACS, each of which an item shows or does not show. `source` says where the list was read."""

    kind: Literal["units"] = "units"
    units: Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], Field(min_length=1)]
    source: FactSource


class CaptionTarget(CardSection):
    """A caption for each item. `source` says where the form of the captions was read."""

    kind: Literal["caption"] = "caption"
    language: Text
    source: FactSource


class QuestionTarget(CardSection):
    """A question with several answers for each item, one of which is right.

    Attributes:
        right: The position of the right answer in the files, counted from 0; None if the files name it. If all right
            answers are at one position, the answers must be shuffled before they are scored.
        source: Where the form of the questions was read.
    """

    kind: Literal["question"] = "question"
    right: Annotated[int, Field(ge=0)] | None = None
    source: FactSource


Target = Annotated[
    ClassTarget | NumbersTarget | UnitsTarget | CaptionTarget | QuestionTarget, Field(discriminator="kind")
]


class SplitFacts(CardSection):
    """Describes one split of a benchmark.

    Attributes:
        samples: Number of items; None if it is unknown. For a benchmark with folds, one number for each fold.
        by_class: Number of items of each class, if it is known; only for a benchmark without folds.
        source: Where the numbers were read. If it is unknown, the numbers are printed as unchecked.
    """

    samples: Size | tuple[Size, ...] | None = None
    by_class: dict[ClassName, Size] = Field(default={})
    source: FactSource


class Published(CardSection):
    """A published score of another model. It is shown beside the user's scores, and never mixed with them.

    Attributes:
        model: The model, such as "CLIP ViT-B/32".
        score: The name of the score, such as "uar".
        value: The score in per cent, or in the unit of the score.
        protocol: What was trained on what, such as "prompts alone" or "fine-tuned".
        exact: Whether the number was printed; False if it was read off a figure.
        source: Where the score was read.
    """

    model: Text
    score: Name
    value: float
    protocol: Text
    exact: bool = True
    source: FactSource

    def value_text(self) -> str:
        """Returns the score as text, with "about" if it was read off a figure."""
        return f"{self.value:g}" if self.exact else f"about {self.value:g}"


class Card(CardSection):
    """Describes a benchmark.

    Attributes:
        version: Version of the format of cards.
        name: Name on the command line and in records.
        title: Name for readers.
        about: What the benchmark contains, in one or two sentences.
        media: Whether an item is an image or a video.
        faces: The names of other benchmarks, or other sets, from which faces of this benchmark come; empty if all faces
            are its own. `about` then also names these sets.
        target: What is predicted.
        splits: The splits by their names.
        scored: The split on which scores are reported.
        folds: Number of folds; the score of the benchmark is the mean over the folds. None if there are none.
        scores: The names of the scores that publications report, the most important one first.
        scores_source: Where the names of the scores were read.
        layouts: How copies lie on a disk. The first layout that fits a copy is used.
        attributes: Where the copies say something about the persons, such as their gender; None if they do not, or if
            nobody has read where.
        licence: The terms of the benchmark. The authors may have changed them since they were read.
        obtain: How a user gets a copy.
        citation: The publication.
        traps: Known mistakes that change scores.
        published: Published scores of other models.
    """

    version: Literal[2]
    name: Name
    title: Text
    about: Text
    media: Literal["image", "video"]
    faces: tuple[Name, ...] = ()
    target: Target
    splits: Annotated[dict[Name, SplitFacts], Field(min_length=1)]
    scored: Name
    folds: Annotated[int, Field(ge=2)] | None = None
    scores: Annotated[tuple[Name, ...], Field(min_length=1)]
    scores_source: FactSource
    layouts: Annotated[tuple[Layout, ...], Field(min_length=1)]
    attributes: Attributes | None = None
    licence: SourcedText
    obtain: SourcedText
    citation: SourcedText
    traps: tuple[SourcedText, ...] = ()
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> "Card":
        if self.scored not in self.splits:
            raise ValueError(f"scored: {self.scored!r} is no split")
        for name, split in self.splits.items():
            if isinstance(split.samples, tuple) and len(split.samples) != self.folds:
                raise ValueError(f"splits.{name}: {len(split.samples)} sizes for {self.folds} folds")
            if isinstance(self.target, ClassTarget) and (
                unknown := [each for each in split.by_class if each not in self.target.classes]
            ):
                raise ValueError(f"splits.{name}.by_class: {unknown[0]!r} is no class")
        if isinstance(self.target, ClassTarget):
            for number, layout in enumerate(self.layouts):
                if unknown := sorted(set(layout.codes.values()) - set(self.target.classes)):
                    raise ValueError(f"layouts[{number}].codes: {unknown[0]!r} is no class")
        return self
