"""Defines the samples to which outcomes refer, and the types of what a file with outcomes holds for each of them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, PlainSerializer

# Somebody else may have written a file with outcomes, so texts and numbers have bounds.
Key = Annotated[str, Field(max_length=1024)]
Name = Annotated[str, Field(max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Probability = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Index = Annotated[int, Field(ge=0, le=1 << 40)]
Rows = Annotated[
    tuple[Index, ...], PlainSerializer(lambda rows: [] if _are_all(rows) else list(rows), return_type=list[int])
]
"""The rows of samples. A document holds no numbers if they are those of all samples in their order."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Describes the samples of a scored split. Outcomes refer to a sample by its row, which is its index in `keys`.

    Attributes:
        keys: A name of each sample that is the same in every evaluation of the same dataset.
        groups: The person or clip of each sample; None for a sample whose person or clip is unknown. Empty if this
            holds for all samples.
        folds: The fold of each sample, counted from 0; empty if there is only one fold.
        labels: By the name of a label, such as the age, its value for each sample; None for a sample without the label.
            The samples can be divided by these labels.

    Raises:
        ValueError: If the lengths differ.
    """

    keys: tuple[Key, ...]
    groups: tuple[Key | None, ...] = ()
    folds: tuple[Annotated[int, Field(ge=0, lt=1000)], ...] = ()
    labels: Mapping[Name, tuple[Number | Name | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {"groups": self.groups or self.keys, "folds": self.folds or self.keys, **self.labels}
        check_lengths(len(self.keys), **columns)

    def __len__(self) -> int:
        return len(self.keys)


def answers_digest(queries: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Returns a digest of the right answers of queries. It depends neither on the order of queries nor of answers.

    Args:
        queries: The name of each query, and its right answers.
    """
    found = sorted((query, sorted(answers)) for query, answers in queries)
    return hashlib.blake2b(repr(found).encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _are_all(rows: Sequence[int]) -> bool:
    """Returns whether rows are those of the first samples in their order."""
    return all(row == place for place, row in enumerate(rows))


def fill_rows(outcomes: Any, count: int) -> None:
    """Gives outcomes without rows those of the first `count` samples. Their dataclass is frozen."""
    if not outcomes.rows:
        object.__setattr__(outcomes, "rows", tuple(range(count)))


def check_lengths(wanted: int, **columns: Sequence[object]) -> None:
    """Checks that columns have the wanted number of entries.

    Raises:
        ValueError: If one of them has another number. The message contains the name of the column.
    """
    for name, column in columns.items():
        if len(column) != wanted:
            raise ValueError(f"{name} has {len(column)} entries, and should have {wanted}")
