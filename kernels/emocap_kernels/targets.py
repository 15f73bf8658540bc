"""What a block of scores is asked to be: which pairs are positives, and which take no part.

A block holds some row anchors (images) against all or some column anchors (texts, sentences). Rows and columns have
their own positives, because each direction mines for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Targets(Protocol):
    """The positives of a block of scores, [rows, columns]."""

    def row_sums(self, score: Tensor) -> Tensor:
        """Sum over the positives of each row, [rows]."""
        ...

    def column_sums(self, score: Tensor) -> Tensor: ...
    def row_counts(self) -> Tensor: ...
    def column_counts(self) -> Tensor: ...
    def row_candidates(self, score: Tensor) -> Tensor:
        """`score` with -inf where the pair takes no part for the row; `score` itself if all do."""
        ...

    def column_candidates(self, score: Tensor) -> Tensor: ...
    def positives_alone(self) -> Targets:
        """The same positives, as the only candidates."""
        ...

    def subtract_(self, gradient: Tensor, row_share: Tensor, column_share: Tensor) -> None:
        """Subtracts from each positive its row's and its column's share, in place."""
        ...


@dataclass(frozen=True, slots=True)
class Diagonal:
    """Row r has one positive, column `first + r`, if the block has that column: InfoNCE without a mask in memory.

    Attributes:
        first: The column of row 0, below 0 or beyond the end where other columns are meant.
        rows: How many rows the block has.
        zeros: [columns] of the type of the scores.
    """

    first: int
    rows: int
    zeros: Tensor

    def row_sums(self, score: Tensor) -> Tensor:
        return self._spread(self._of(score), self.rows, max(0, -self.first))

    def column_sums(self, score: Tensor) -> Tensor:
        return self._spread(self._of(score), len(self.zeros), max(0, self.first))

    def row_counts(self) -> Tensor:
        return self._spread(self.zeros.new_ones(self._length), self.rows, max(0, -self.first))

    def column_counts(self) -> Tensor:
        return self._spread(self.zeros.new_ones(self._length), len(self.zeros), max(0, self.first))

    def row_candidates(self, score: Tensor) -> Tensor:
        return score

    def column_candidates(self, score: Tensor) -> Tensor:
        return score

    def positives_alone(self) -> Masks:
        own = torch.zeros(self.rows, len(self.zeros), dtype=torch.bool, device=self.zeros.device)
        self._of(own).fill_(True)
        return Masks(own, own).positives_alone()

    def subtract_(self, gradient: Tensor, row_share: Tensor, column_share: Tensor) -> None:
        row, column = max(0, -self.first), max(0, self.first)
        share = row_share[row : row + self._length] + column_share[column : column + self._length]
        self._of(gradient).sub_(share)

    @property
    def _length(self) -> int:
        return max(0, min(self.rows, len(self.zeros) - self.first) - max(0, -self.first))

    def _of(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(self.first)

    def _spread(self, values: Tensor, length: int, first: int) -> Tensor:
        spread = self.zeros.new_zeros(length)
        spread[first : first + self._length] = values
        return spread


@dataclass(frozen=True, slots=True)
class Masks:
    """Any positives, as bool masks [rows, columns]; a dropped pair leaves the denominator of its direction."""

    row_positive: Tensor
    column_positive: Tensor
    row_dropped: Tensor | None = None
    column_dropped: Tensor | None = None

    def row_sums(self, score: Tensor) -> Tensor:
        return _kept(score, self.row_positive).sum(1)

    def column_sums(self, score: Tensor) -> Tensor:
        return _kept(score, self.column_positive).sum(0)

    def row_counts(self) -> Tensor:
        return _count(self.row_positive, 1)

    def column_counts(self) -> Tensor:
        return _count(self.column_positive, 0)

    def row_candidates(self, score: Tensor) -> Tensor:
        return _without(score, self.row_dropped)

    def column_candidates(self, score: Tensor) -> Tensor:
        return _without(score, self.column_dropped)

    def positives_alone(self) -> Masks:
        return Masks(self.row_positive, self.column_positive, ~self.row_positive, ~self.column_positive)

    def subtract_(self, gradient: Tensor, row_share: Tensor, column_share: Tensor) -> None:
        gradient.sub_(self.row_positive * row_share[:, None])
        gradient.sub_(self.column_positive * column_share)

    def columns(self, part: slice) -> Masks:
        """The same targets for some of the columns."""
        return Masks(
            self.row_positive[:, part],
            self.column_positive[:, part],
            None if self.row_dropped is None else self.row_dropped[:, part],
            None if self.column_dropped is None else self.column_dropped[:, part],
        )


def _kept(score: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, score, 0.0)


def _count(mask: Tensor, axis: int) -> Tensor:
    # As bytes: torch adds bools up ten times slower on CPU.
    return mask.view(torch.uint8).sum(axis, dtype=torch.int32)


def _without(score: Tensor, dropped: Tensor | None) -> Tensor:
    return score if dropped is None else score.masked_fill(dropped, float("-inf"))
