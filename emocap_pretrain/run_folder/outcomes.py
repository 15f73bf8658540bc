"""Defines outcomes as plain values: what an evaluation task has found for each sample, such as the predicted class.

Scores alone cannot tell whether one model is better than another on the same samples, or for which groups of people a
model is worse. Outcomes can. They are larger than scores, so reports do not contain them: `emocap evaluate --save`
writes them into a file of their own (`evaluation/result_file.py`).

`evaluation/outcome_scores.py` computes scores from outcomes again, and gives them the same names as the tasks do.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field

from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, LossOutcomes, RegionOutcomes
from emocap_pretrain.run_folder.samples import Index, Key, Name, Number, Probability, Rows, check_lengths, fill_rows

Classes = Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]


@dataclass(frozen=True, slots=True)
class ClassOutcomes:
    """Holds the true and the predicted class of samples.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        classes: The names of the classes.
        truth: The true class of each sample, as an index into `classes`.
        predicted: The predicted class of each sample, as an index into `classes`.
        margins: For each sample the score of the later one of the two true classes minus that of the other one; empty
            if there are not exactly two true classes, or the model gives no scores.

    Raises:
        ValueError: If the lengths differ, an index is too large, or there are margins and more than two true classes.
    """

    rows: Rows
    classes: Classes
    truth: tuple[Index, ...]
    predicted: tuple[Index, ...]
    margins: tuple[Number, ...] = ()
    kind: Literal["class"] = "class"

    def __post_init__(self) -> None:
        fill_rows(self, len(self.truth))
        check_lengths(len(self.rows), truth=self.truth, predicted=self.predicted, margins=self.margins or self.truth)
        if max((*self.truth, *self.predicted), default=-1) >= len(self.classes):
            raise ValueError(f"the number of a class is not below {len(self.classes)}, the number of classes")
        if self.margins and len(set(self.truth)) > 2:
            raise ValueError("there are margins between two classes, and more than two classes occur")


@dataclass(frozen=True, slots=True)
class RankOutcomes:
    """Holds for each query the rank of its best right answer: its place among all answers, counted from 1.

    Attributes:
        direction: The last part of the names of scores, such as `a_to_b` in `recall_at_5_a_to_b`.
        ranks: The rank of each query.
        rows: The row of the sample that is the query, for each query; empty if the queries are texts. If neither rows
            nor keys are given, the queries are all samples in their order.
        keys: A name of each query if the queries are texts; otherwise empty.
        candidates: The number of answers among which the ranks are; 0 if it is unknown.
        answers: A digest of the right answers of all queries (`answers_digest`); empty if it is unknown.

    Raises:
        ValueError: If the lengths differ, or there are both rows and keys.
    """

    direction: Name
    ranks: tuple[Annotated[int, Field(ge=1, le=1 << 40)], ...]
    rows: Rows = ()
    keys: tuple[Key, ...] = ()
    candidates: Index = 0
    answers: Name = ""
    kind: Literal["rank"] = "rank"

    def __post_init__(self) -> None:
        if self.keys and self.rows:
            raise ValueError("a query is either a sample or a text, so there cannot be both rows and keys")
        if not self.keys:
            fill_rows(self, len(self.ranks))
        check_lengths(len(self.ranks), **({"keys": self.keys} if self.keys else {"rows": self.rows}))


@dataclass(frozen=True, slots=True)
class NumberOutcomes:
    """Holds true and predicted numbers of samples, such as valence and arousal.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        names: What the numbers measure.
        truth: For each name a column with the true number of each sample.
        predicted: For each name a column with the predicted number of each sample.

    Raises:
        ValueError: If the lengths differ.
    """

    rows: Rows
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    truth: tuple[tuple[Number, ...], ...]
    predicted: tuple[tuple[Number, ...], ...]
    kind: Literal["numbers"] = "numbers"

    def __post_init__(self) -> None:
        check_lengths(len(self.names), truth=self.truth, predicted=self.predicted)
        fill_rows(self, len(self.truth[0]) if self.truth else 0)
        for column in (*self.truth, *self.predicted):
            check_lengths(len(self.rows), numbers=column)


@dataclass(frozen=True, slots=True)
class AnswerOutcomes:
    """Says for the question of each sample whether the model chose the right answer.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        is_right: Whether the right answer was chosen, for each sample.
        answers: A digest of the answers of all questions and of the right ones (`answers_digest`); empty if it is
            unknown.

    Raises:
        ValueError: If the lengths differ.
    """

    rows: Rows
    is_right: tuple[bool, ...]
    answers: Name = ""
    kind: Literal["answer"] = "answer"

    def __post_init__(self) -> None:
        fill_rows(self, len(self.is_right))
        check_lengths(len(self.rows), is_right=self.is_right)


@dataclass(frozen=True, slots=True)
class UnitOutcomes:
    """Holds for each action unit which samples show it, and in which the model has found it.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        units: The names of the units.
        shown: For each unit a column: 1 for a sample that shows the unit, 0 for one that does not, and -1 for a sample
            without a label of the unit.
        found: For each unit a column: 1 for a sample in which the model has found the unit, and 0 for any other.
        scores: For each unit a column with the model's score of each sample, which is high if it finds the unit; empty
            if there are too many samples to keep them.

    Raises:
        ValueError: If the lengths differ.
    """

    rows: Rows
    units: Annotated[tuple[Name, ...], Field(min_length=1)]
    shown: tuple[tuple[Annotated[int, Field(ge=-1, le=1)], ...], ...]
    found: tuple[tuple[Annotated[int, Field(ge=0, le=1)], ...], ...]
    scores: tuple[tuple[Number, ...], ...] = ()
    kind: Literal["units"] = "units"

    def __post_init__(self) -> None:
        check_lengths(len(self.units), shown=self.shown, found=self.found, scores=self.scores or self.units)
        fill_rows(self, len(self.shown[0]) if self.shown else 0)
        for column in (*self.shown, *self.found, *self.scores):
            check_lengths(len(self.rows), units=column)


@dataclass(frozen=True, slots=True)
class ShotOutcomes:
    """Says which probes were right for each sample. The probes were trained on few examples, drawn several times.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        classes: The names of the classes.
        truth: The true class of each sample, as an index into `classes`.
        shots: The numbers of training examples of each class. The last part of the names of scores, as in `uar_4`.
        draws: How often the examples were drawn for each of these numbers.
        right: For each of these numbers a column. Bit d of a sample's number is 1 if the probe of draw d was right.
        chosen: For each of these numbers a digest of the examples of each draw, for training and for choices.

    Raises:
        ValueError: If the lengths differ, a number of examples occurs twice, an index is too large, or a number has
            more bits than there are draws.
    """

    rows: Rows
    classes: Classes
    truth: tuple[Index, ...]
    shots: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...], Field(min_length=1, max_length=20)]
    draws: Annotated[int, Field(ge=2, le=40)]
    right: tuple[tuple[Index, ...], ...]
    chosen: tuple[tuple[Name, ...], ...]
    kind: Literal["shots"] = "shots"

    def __post_init__(self) -> None:
        fill_rows(self, len(self.truth))
        check_lengths(len(self.rows), truth=self.truth)
        check_lengths(len(set(self.shots)), shots=self.shots, right=self.right, chosen=self.chosen)
        if max(self.truth, default=-1) >= len(self.classes):
            raise ValueError(f"the number of a class is not below {len(self.classes)}, the number of classes")
        for digests, column in zip(self.chosen, self.right, strict=True):
            check_lengths(self.draws, chosen=digests)
            check_lengths(len(self.rows), right=column)
            if max(column, default=0) >> self.draws:
                raise ValueError(f"a number of right probes has more than {self.draws} bits")


@dataclass(frozen=True, slots=True)
class ProbabilityOutcomes:
    """Holds how sure a model was of the class that it predicted for each sample.

    Attributes:
        rows: The rows of the samples (`Samples`); if none are given, all rows in their order.
        classes: The names of the classes.
        truth: The true class of each sample, as an index into `classes`.
        predicted: The predicted class of each sample, as an index into `classes`.
        confidences: The probability of the predicted class of each sample.
        losses: For each sample the negative logarithm of the probability of its true class, in nats; empty if the task
            reports no log loss.
        suffix: The last part of the names of scores, such as `_before` in `ece_before`; may be empty.

    Raises:
        ValueError: If the lengths differ, or an index is too large.
    """

    rows: Rows
    classes: Classes
    truth: tuple[Index, ...]
    predicted: tuple[Index, ...]
    confidences: tuple[Probability, ...]
    losses: tuple[Number, ...] = ()
    suffix: Name = ""
    kind: Literal["probabilities"] = "probabilities"

    def __post_init__(self) -> None:
        fill_rows(self, len(self.truth))
        columns = {"predicted": self.predicted, "confidences": self.confidences, "losses": self.losses or self.truth}
        check_lengths(len(self.rows), truth=self.truth, **columns)
        if max((*self.truth, *self.predicted), default=-1) >= len(self.classes):
            raise ValueError(f"the number of a class is not below {len(self.classes)}, the number of classes")


Outcomes = Annotated[
    ClassOutcomes
    | RankOutcomes
    | NumberOutcomes
    | AnswerOutcomes
    | UnitOutcomes
    | ShotOutcomes
    | ProbabilityOutcomes
    | CaptionOutcomes
    | RegionOutcomes
    | LossOutcomes,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Holds one of the answers that a model ranks first for a query.

    Attributes:
        text: The answer: a text, or the key of a sample.
        is_right: Whether it is a right answer.
    """

    text: Annotated[str, Field(max_length=4000)]
    is_right: bool


@dataclass(frozen=True, slots=True)
class FoundExample:
    """Holds a query with the candidates that are closest to it, the closest first, as an example for readers.

    Attributes:
        query: The text of the query, or the key of its sample.
        is_sample: Whether the query is a sample. If so, the candidates are texts; otherwise they are samples.
        candidates: The closest candidates.
        rank: The place of the best right answer among all candidates, counted from 1. It may be larger than the number
            of `candidates`.
    """

    query: Annotated[str, Field(max_length=4000)]
    is_sample: bool
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=20)]
    rank: Annotated[int, Field(ge=1, le=1 << 40)]


def columns(outcomes: Outcomes) -> tuple[str, ...]:
    """Returns the names of the attributes that have one value for each entry.

    Attributes that have several columns (`tables`) are not among them.
    """
    match outcomes:
        case ClassOutcomes():
            return ("rows", "truth", "predicted", *(["margins"] if outcomes.margins else []))
        case RankOutcomes():
            return ("ranks", "keys" if outcomes.keys else "rows")
        case NumberOutcomes() | UnitOutcomes() | CaptionOutcomes() | RegionOutcomes() | LossOutcomes():
            return ("rows",)
        case AnswerOutcomes():
            return ("rows", "is_right")
        case ShotOutcomes():
            return ("rows", "truth")
        case ProbabilityOutcomes():
            return ("rows", "truth", "predicted", "confidences", *(["losses"] if outcomes.losses else []))


def tables(outcomes: Outcomes) -> tuple[str, ...]:
    """Returns the names of the attributes that have several columns with one value for each entry."""
    match outcomes:
        case NumberOutcomes():
            return ("truth", "predicted")
        case UnitOutcomes():
            return ("shown", "found", "scores")
        case ShotOutcomes():
            return ("right",)
        case CaptionOutcomes() | RegionOutcomes() | LossOutcomes():
            return outcomes.TABLES
        case ClassOutcomes() | RankOutcomes() | AnswerOutcomes() | ProbabilityOutcomes():
            return ()


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Returns the outcomes of several parts of the samples as one, part after part.

    All parts must be of the same kind and have the same names and classes. Ranks must be those of queries that are
    samples: names of texts are not joined. Margins are left out unless all parts have them for the same two classes,
    and scores of units unless all parts have them.
    """
    parts = _with_common_scores(parts)
    first = parts[0]
    changes: dict[str, Any] = {
        name: tuple(chain.from_iterable(getattr(part, name) for part in parts)) for name in columns(first)
    }
    if isinstance(first, RankOutcomes | AnswerOutcomes):
        digests = [part.answers for part in parts if isinstance(part, RankOutcomes | AnswerOutcomes)]
        changes["answers"] = _digest_of(digests) if all(digests) else ""
    if isinstance(first, RankOutcomes):
        counts = [part.candidates for part in parts if isinstance(part, RankOutcomes)]
        changes["candidates"] = sum(counts) if all(counts) else 0
    if isinstance(first, ShotOutcomes):
        # Draw d of the whole consists of the draws d of all parts.
        by_shots = zip(*(part.chosen for part in parts if isinstance(part, ShotOutcomes)), strict=True)
        changes["chosen"] = tuple(tuple(map(_digest_of, zip(*each, strict=True))) for each in by_shots)
    for name in tables(first):
        by_column = zip(*(getattr(part, name) for part in parts), strict=True)
        changes[name] = tuple(tuple(chain.from_iterable(each)) for each in by_column)
    return replace(first, **changes)


def _digest_of(digests: Iterable[str]) -> str:
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=12).hexdigest()


def _with_common_scores(parts: Sequence[Outcomes]) -> Sequence[Outcomes]:
    classes = [part for part in parts if isinstance(part, ClassOutcomes)]
    if classes and (not all(part.margins for part in classes) or len({frozenset(part.truth) for part in classes}) > 1):
        return [replace(part, margins=()) for part in classes]
    units = [part for part in parts if isinstance(part, UnitOutcomes)]
    if units and not all(part.scores for part in units):
        return [replace(part, scores=()) for part in units]
    return parts
