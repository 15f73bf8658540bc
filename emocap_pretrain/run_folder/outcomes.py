"""Defines what an evaluation task has found for each sample, as plain values.

Scores alone cannot tell whether one model is better than another on the same samples, or for which groups of people a
model is worse. Outcomes can. They are larger than scores, so reports do not contain them: `emocap evaluate --save`
writes them into a file of their own (`evaluation/result_file.py`).

The names of scores that follow from outcomes are those of the tasks (`evaluation/paired.py` computes them again).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field

# Somebody else may have written a file with outcomes, so texts and numbers have bounds.
Key = Annotated[str, Field(max_length=1024)]
Name = Annotated[str, Field(max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Index = Annotated[int, Field(ge=0, le=1 << 40)]


@dataclass(frozen=True, slots=True)
class Samples:
    """Describes the samples of a scored split. An outcome names a sample by its row, counted from 0.

    Attributes:
        keys: A name of each sample that is the same in every evaluation of the same dataset.
        groups: The person or clip of each sample; None where it is unknown. Empty if it is unknown for all.
        folds: The fold of each sample, counted from 0; empty if there is only one.
        labels: Labels by which the samples can be divided, such as the age, with the value of each sample; None where
            there is none.

    Raises:
        ValueError: If the lengths differ.
    """

    keys: tuple[Key, ...]
    groups: tuple[Key | None, ...] = ()
    folds: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = ()
    labels: Mapping[Name, tuple[Number | Name | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {"groups": self.groups or self.keys, "folds": self.folds or self.keys, **self.labels}
        _check_lengths(len(self.keys), **columns)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class ClassOutcomes:
    """Holds the true and the predicted class of samples, as positions in `classes`."""

    rows: tuple[Index, ...]
    classes: tuple[Name, ...]
    truth: tuple[Index, ...]
    predicted: tuple[Index, ...]
    kind: Literal["class"] = "class"

    def __post_init__(self) -> None:
        _check_lengths(len(self.rows), truth=self.truth, predicted=self.predicted)
        if max((*self.truth, *self.predicted), default=0) >= max(1, len(self.classes)):
            raise ValueError(f"the number of a class is not below {len(self.classes)}, the number of classes")


@dataclass(frozen=True, slots=True)
class RankOutcomes:
    """Holds the place of the best right answer of each query, counted from 1.

    Attributes:
        direction: The last part of the names of scores, such as `a_to_b` in `recall_at_5_a_to_b`.
        prefix: The first part of the names of scores, such as `local_`; empty if there is none.
        ranks: The places.
        rows: The samples that are the queries; empty if the queries are texts.
        keys: A name of each query, if the queries are texts.
    """

    direction: Name
    ranks: tuple[Annotated[int, Field(ge=1, le=1 << 40)], ...]
    rows: tuple[Index, ...] = ()
    keys: tuple[Key, ...] = ()
    prefix: Name = ""
    kind: Literal["rank"] = "rank"

    def __post_init__(self) -> None:
        _check_lengths(len(self.ranks), **({"keys": self.keys} if self.keys else {"rows": self.rows}))


@dataclass(frozen=True, slots=True)
class NumberOutcomes:
    """Holds true and predicted numbers: a column for each of `names`, with a number for each of `rows`."""

    rows: tuple[Index, ...]
    names: tuple[Name, ...]
    truth: tuple[tuple[Number, ...], ...]
    predicted: tuple[tuple[Number, ...], ...]
    kind: Literal["numbers"] = "numbers"

    def __post_init__(self) -> None:
        _check_lengths(len(self.names), truth=self.truth, predicted=self.predicted)
        for column in (*self.truth, *self.predicted):
            _check_lengths(len(self.rows), numbers=column)


@dataclass(frozen=True, slots=True)
class AnswerOutcomes:
    """Says of each question whether the right answer was chosen."""

    rows: tuple[Index, ...]
    is_right: tuple[bool, ...]
    kind: Literal["answer"] = "answer"

    def __post_init__(self) -> None:
        _check_lengths(len(self.rows), is_right=self.is_right)


Outcomes = Annotated[ClassOutcomes | RankOutcomes | NumberOutcomes | AnswerOutcomes, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Holds one of the answers that a model finds closest to a query: a text, or the key of a sample."""

    text: Annotated[str, Field(max_length=4000)]
    is_right: bool


@dataclass(frozen=True, slots=True)
class FoundExample:
    """Holds a query with the candidates that are closest to it, the closest first, as an example for readers.

    Attributes:
        query: The text of the query, or the key of its sample.
        is_sample: Whether the query is a sample. If so, the candidates are texts; otherwise they are samples.
        candidates: The closest candidates.
        rank: The place of the best right answer, counted from 1.
    """

    query: Annotated[str, Field(max_length=4000)]
    is_sample: bool
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=20)]
    rank: Annotated[int, Field(ge=1, le=1 << 40)]


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Returns the outcomes of several parts of the samples as one, part after part. All are of the same kind."""
    first = parts[0]
    match first:
        case ClassOutcomes():
            columns = ("rows", "truth", "predicted")
        case RankOutcomes():
            columns = ("rows", "ranks")
        case NumberOutcomes():
            columns = ("rows",)
        case AnswerOutcomes():
            columns = ("rows", "is_right")
    changes: dict[str, Any] = {
        name: tuple(chain.from_iterable(getattr(part, name) for part in parts)) for name in columns
    }
    if isinstance(first, NumberOutcomes):
        for name in ("truth", "predicted"):
            by_number = zip(*(getattr(part, name) for part in parts), strict=True)
            changes[name] = tuple(tuple(chain.from_iterable(each)) for each in by_number)
    return replace(first, **changes)


def _check_lengths(wanted: int, **columns: Iterable[object]) -> None:
    for name, column in columns.items():
        found = len(tuple(column))
        if found != wanted:
            raise ValueError(f"{name} has {found} entries, and should have {wanted}")
