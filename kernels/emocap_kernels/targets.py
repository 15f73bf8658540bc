"""Describes the targets of a tile of scores: which pairs are positives, and which pairs are excluded.

A tile is a part of the score matrix. Its rows are image anchors and its columns are text anchors (sentences, in the
local loss). Each direction mines its own positives, so a pair may be a positive for its row and not for its column.

The modules `contrastive.tiling` (global loss) and `region.positives` (local loss) make the targets of each tile. The
modules `softmax` and `contrastive.objectives` read them only through the methods of `Targets`, so they do not depend on
how positives are represented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Targets(Protocol):
    """Describes the positives and the excluded pairs of a tile of scores, [rows, columns], for both directions.

    A positive of an anchor is never excluded for that anchor. Therefore sums over positives never include the -inf that
    `row_candidates` and `column_candidates` write.

    The tensors are on the device of the tile, and no method makes the host wait for that device. There are two
    implementations: `DiagonalTargets` needs no mask, and `MaskTargets` describes any pairs.
    """

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
        """Returns `score` with -inf at pairs that are excluded for their row, or `score` itself if none are."""
        ...

    def column_candidates(self, score: Tensor) -> Tensor:
        """Returns `score` with -inf at pairs that are excluded for their column, or `score` itself if none are."""
        ...

    def positives_only(self) -> Targets:
        """Returns targets with the same positives, in which all other pairs are excluded."""
        ...

    def subtract_at_positives_(self, gradient: Tensor, row_weight: Tensor, column_weight: Tensor) -> None:
        """Subtracts weights from the entries of `gradient` that belong to positives, in place.

        `gradient` is [rows, columns], `row_weight` is [rows] and `column_weight` is [columns]. At each positive of a
        row, the row's entry of `row_weight` is subtracted. At each positive of a column, the column's entry of
        `column_weight` is subtracted.
        """
        ...


@dataclass(frozen=True, slots=True)
class DiagonalTargets:
    """Describes a tile whose only positives are own pairs (image and text of one sample), without a mask.

    The positive of row r is column `first + r`, if the tile has that column. For example, with `first` -1 the positive
    of row 1 is column 0, and row 0 has none in this tile.

    Attributes:
        first: The column of the positive of row 0. It is negative, or beyond the last column, if the tile lacks it.
        rows: Number of rows of the tile.
        zeros: A tensor of zeros, [columns], with the type and device of the scores. Its length gives the number of
            columns, and the results of the methods get its type and device.
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
        # `diagonal` returns a view, so filling it changes `own`.
        self._diagonal(own).fill_(True)
        return MaskTargets(own, own).positives_only()

    def subtract_at_positives_(self, gradient: Tensor, row_weight: Tensor, column_weight: Tensor) -> None:
        row, column = max(0, -self.first), max(0, self.first)
        weight = row_weight[row : row + self._length] + column_weight[column : column + self._length]
        self._diagonal(gradient).sub_(weight)

    @property
    def _length(self) -> int:
        # The number of own pairs in the tile: the length of its diagonal `first`, 0 if the diagonal misses the tile.
        return max(0, min(self.rows, len(self.zeros) - self.first) - max(0, -self.first))

    def _diagonal(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(self.first)

    # Returns zeros of `length` with `values`, one for each own pair of the tile, from place `first` on.
    def _spread(self, values: Tensor, length: int, first: int) -> Tensor:
        spread = self.zeros.new_zeros(length)
        spread[first : first + self._length] = values
        return spread


@dataclass(frozen=True, slots=True)
class MaskTargets:
    """Describes any positives of a tile by bool masks, [rows, columns] each.

    A dropped pair is excluded from the softmax denominator of its direction. Where a mask of dropped pairs is None, no
    pair is dropped. Several fields may hold the same tensor, so a mask must not be changed.

    Attributes:
        row_positive: Pairs whose column is a positive of the row's anchor.
        column_positive: Pairs whose row is a positive of the column's anchor.
        row_dropped: Pairs that are excluded for the row's anchor, or None.
        column_dropped: Pairs that are excluded for the column's anchor, or None.
    """

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
        """Returns the same targets for the columns in the slice `part`."""
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
