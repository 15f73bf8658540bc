"""Defines the outcomes whose scores are sums or means of what each sample adds: captions, attention maps and losses."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emocap_pretrain.run_folder.samples import Index, Name, Number, Rows, check_lengths, fill_rows


@dataclass(frozen=True, slots=True)
class CaptionOutcomes:
    """Holds what the written caption of each sample adds to the scores of all captions.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        ngrams: Columns of counts, from whose sums BLEU-4 follows: the matching n-grams for n = 1 to 4, all n-grams of
            the caption for n = 1 to 4, the length of the caption, and that of the reference closest to it in length.
        names: The names of the scores that are means over the captions.
        values: For each of these names a column with the value of each caption.
        references: A digest of the references of all samples (`answers_digest`); empty if it is unknown.

    Raises:
        ValueError: If the lengths differ.
    """

    rows: Rows
    ngrams: tuple[tuple[Index, ...], ...]
    names: Annotated[tuple[Name, ...], Field(max_length=20)]
    values: tuple[tuple[Number, ...], ...]
    references: Name = ""
    kind: Literal["captions"] = "captions"
    TABLES: ClassVar[tuple[str, ...]] = ("ngrams", "values")

    def __post_init__(self) -> None:
        check_lengths(10, ngrams=self.ngrams)
        check_lengths(len(self.names), values=self.values)
        fill_rows(self, len(self.ngrams[0]))
        for column in (*self.ngrams, *self.values):
            check_lengths(len(self.rows), captions=column)


@dataclass(frozen=True, slots=True)
class RegionOutcomes:
    """Holds how well the attention maps of the sentences about each sample lie in the regions of its face.

    Each measure has `own` and `control`, and each of these has a column for each region, measure after measure.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        regions: The names of the regions.
        measures: The names of the measures, which are the first part of the names of scores.
        patches: The number of patches of a map; 0 if it is unknown.
        sentences: For each region a column with the number of sentences about it.
        controlled: For each region a column with the number of those that have a control.
        own: Columns with the sum of a measure over the sentences.
        control: Columns with the sum of a measure over the controls, which are maps of other sentences.
        change: Columns with the sum, over the sentences with a control, of the measure minus that of the control.
        about: A digest of the sentences of all samples; empty if it is unknown.

    Raises:
        ValueError: If the lengths differ.
    """

    rows: Rows
    regions: Annotated[tuple[Name, ...], Field(min_length=1, max_length=200)]
    measures: Annotated[tuple[Name, ...], Field(min_length=1, max_length=20)]
    patches: Index
    sentences: tuple[tuple[Index, ...], ...]
    controlled: tuple[tuple[Index, ...], ...]
    own: tuple[tuple[Number, ...], ...]
    control: tuple[tuple[Number, ...], ...]
    change: tuple[tuple[Number, ...], ...]
    about: Name = ""
    kind: Literal["regions"] = "regions"
    TABLES: ClassVar[tuple[str, ...]] = ("sentences", "controlled", "own", "control", "change")

    def __post_init__(self) -> None:
        check_lengths(len(self.regions), sentences=self.sentences, controlled=self.controlled)
        columns = {"own": self.own, "control": self.control, "change": self.change}
        check_lengths(len(self.regions) * len(self.measures), **columns)
        fill_rows(self, len(self.sentences[0]))
        for column in (*self.sentences, *self.controlled, *self.own, *self.control, *self.change):
            check_lengths(len(self.rows), regions=column)


@dataclass(frozen=True, slots=True)
class LossOutcomes:
    """Holds what each sample adds to a contrastive loss, which is the mean of these values.

    A value holds the losses of the sample's own anchors, and how the sample changes those of the others
    (`evaluation/loss_values.py`).

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        parts: The caption parts.
        weights: The weight of each part in the total loss; empty if the total does not follow from the values.
        values: For each part a column with the value of each sample.
        about: For each part a digest of the batches, their texts, and which texts are positives of which images.

    Raises:
        ValueError: If the lengths differ.
    """

    rows: Rows
    parts: Annotated[tuple[Name, ...], Field(min_length=1, max_length=20)]
    weights: tuple[Number, ...]
    values: tuple[tuple[Number, ...], ...]
    about: tuple[Name, ...]
    kind: Literal["losses"] = "losses"
    TABLES: ClassVar[tuple[str, ...]] = ("values",)

    def __post_init__(self) -> None:
        check_lengths(len(self.parts), weights=self.weights or self.parts, values=self.values, about=self.about)
        fill_rows(self, len(self.values[0]))
        for column in self.values:
            check_lengths(len(self.rows), values=column)
