"""Holds what checks of the captions of a dataset have found, for the page of its summary."""

from collections.abc import Mapping
from dataclasses import dataclass

MOST_NOTES = 6
"""The most findings that are shown beside one face."""


@dataclass(frozen=True, slots=True)
class CheckTally:
    """Counts the findings of one check about one region of the face.

    Attributes:
        check: Name of the check.
        region: Name of the region; "" if the text as a whole was judged.
        agree: Findings without a fault.
        disagree: Findings with a fault.
        abstain: Findings without a score.
        mean: Mean score in [0, 1]; None if no finding has a score.
    """

    check: str
    region: str
    agree: int
    disagree: int
    abstain: int
    mean: float | None

    @property
    def total(self) -> int:
        return self.agree + self.disagree + self.abstain


@dataclass(frozen=True, slots=True)
class CheckedDataset:
    """Holds the findings of a dataset: their counts, and the reasons of low scores of some samples by their keys."""

    tallies: tuple[CheckTally, ...]
    notes: Mapping[str, tuple[str, ...]]
