"""The targets of a tile of scores: which pairs are positives, and which are excluded.

The rows of a tile are image anchors, its columns text anchors (sentences, in the local loss). Rows and columns have
their own positives, because each direction mines for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Targets(Protocol):
    """The positives of a tile of scores, [rows, columns], for both directions."""

    def row_sums(self, score: Tensor) -> Tensor:
        """Returns the sum of `score` over the positives of each row, [rows]."""
        ...

    def column_sums(self, score: Tensor) -> Tensor:
        """Returns the sum of `score` over the positives of each column, [columns]."""
        ...

    def row_counts(self) -> Tensor:
        """Returns the number of positives of each row, [rows]."""
        ...

    def column_counts(self) -> Tensor:
        """Returns the number of positives of each column, [columns]."""
        ...

    def row_candidates(self, score: Tensor) -> Tensor:
        """Returns `score` with -inf where a pair is excluded for its row; `score` itself if none is."""
        ...

    def column_candidates(self, score: Tensor) -> Tensor:
        """Returns `score` with -inf where a pair is excluded for its column; `score` itself if none is."""
        ...

    def positives_only(self) -> Targets:
        """Returns targets with the same positives, in which these are the only candidates."""
        ...

    def subtract_at_positives_(self, gradient: Tensor, row_weight: Tensor, column_weight: Tensor) -> None:
        """Subtracts the weight of its row, and that of its column, from each positive of `gradient`, in place."""
        ...


@dataclass(frozen=True, slots=True)
class DiagonalTargets:
    """Own pairs only: the positive of row r is column `first + r`, if the tile has that column. It needs no mask.

    Attributes:
        first: The column of row 0. It is negative, or beyond the last column, if the tile lacks that column.
        rows: Number of rows of the tile.
        zeros: [columns], in the type of the scores.
    """

    first: int
    rows: int
    zeros: Tensor

    def row_sums(self, score: Tensor) -> Tensor:
        return self._spread(self._diagonal(score), self.rows, max(0, -self.first))

    def column_sums(self, score: Tensor) -> Tensor:
        return self._spread(self._diagonal(score), len(self.zeros), max(0, self.first))

    def row_counts(self) -> Tensor:
        return self._spread(self.zeros.new_ones(self._length), self.rows, max(0, -self.first))

    def column_counts(self) -> Tensor:
        return self._spread(self.zeros.new_ones(self._length), len(self.zeros), max(0, self.first))

    def row_candidates(self, score: Tensor) -> Tensor:
        return score

    def column_candidates(self, score: Tensor) -> Tensor:
        return score

    def positives_only(self) -> MaskTargets:
        own = torch.zeros(self.rows, len(self.zeros), dtype=torch.bool, device=self.zeros.device)
        self._diagonal(own).fill_(True)
        return MaskTargets(own, own).positives_only()

    def subtract_at_positives_(self, gradient: Tensor, row_weight: Tensor, column_weight: Tensor) -> None:
        row, column = max(0, -self.first), max(0, self.first)
        weight = row_weight[row : row + self._length] + column_weight[column : column + self._length]
        self._diagonal(gradient).sub_(weight)

    @property
    def _length(self) -> int:
        return max(0, min(self.rows, len(self.zeros) - self.first) - max(0, -self.first))

    def _diagonal(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(self.first)

    def _spread(self, values: Tensor, length: int, first: int) -> Tensor:
        spread = self.zeros.new_zeros(length)
        spread[first : first + self._length] = values
        return spread


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """Any positives, as bool masks [rows, columns]. A dropped pair leaves the denominator of its direction."""

    row_positive: Tensor
    column_positive: Tensor
    row_dropped: Tensor | None = None
    column_dropped: Tensor | None = None

    def row_sums(self, score: Tensor) -> Tensor:
        return _masked(score, self.row_positive).sum(1)

    def column_sums(self, score: Tensor) -> Tensor:
        return _masked(score, self.column_positive).sum(0)

    def row_counts(self) -> Tensor:
        return _count(self.row_positive, 1)

    def column_counts(self) -> Tensor:
        return _count(self.column_positive, 0)

    def row_candidates(self, score: Tensor) -> Tensor:
        return _without(score, self.row_dropped)

    def column_candidates(self, score: Tensor) -> Tensor:
        return _without(score, self.column_dropped)

    def positives_only(self) -> MaskTargets:
        return MaskTargets(self.row_positive, self.column_positive, ~self.row_positive, ~self.column_positive)

    def subtract_at_positives_(self, gradient: Tensor, row_weight: Tensor, column_weight: Tensor) -> None:
        gradient.sub_(self.row_positive * row_weight[:, None])
        gradient.sub_(self.column_positive * column_weight)

    def columns(self, part: slice) -> MaskTargets:
        """Returns the same targets for some of the columns."""
        return MaskTargets(
            self.row_positive[:, part],
            self.column_positive[:, part],
            None if self.row_dropped is None else self.row_dropped[:, part],
            None if self.column_dropped is None else self.column_dropped[:, part],
        )


def _masked(score: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, score, 0.0)


def _count(mask: Tensor, axis: int) -> Tensor:
    # The mask is read as bytes: torch adds bools ten times slower on CPU.
    return mask.view(torch.uint8).sum(axis, dtype=torch.int32)


def _without(score: Tensor, dropped: Tensor | None) -> Tensor:
    return score if dropped is None else score.masked_fill(dropped, float("-inf"))
