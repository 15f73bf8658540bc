"""The positives of a problem as kernels take them: groups of known pairs, and the rule that mines the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels.mining import AND, OR, STORE, threshold_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import COLUMN_MARK, ROW_MARK, RULE_JOINT, RULE_MARKS, RULE_NONE
from emocap_kernels.contrastive.problem import Block, Features, Problem
from emocap_kernels.fused.descriptors import ALIGNMENT, aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.nearest import Candidates, nearest_of
from emocap_kernels.fused.shapes import Shape, shape_for
from emocap_kernels.mining import Mining
from emocap_kernels.positives import MinedLists, Products, Side, tile_products

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Positives:
    """What decides the positives of any tile, beside the guide features.

    Attributes:
        groups: int32 [total]; known positives are those of the same group.
        group_sizes: float32 [total], of the group of each.
        has_ids: If groups may hold more than one.
        mining: None for known pairs alone.
        mined_by_score: See `Problem.mined_by_score`.
        lists: With `top_k`: the mined candidates, int32.
        own: Where the local rows lie.
    """

    groups: Tensor
    group_sizes: Tensor
    has_ids: bool
    mining: Mining | None
    mined_by_score: bool
    lists: MinedLists | None
    own: slice

    @property
    def rule(self) -> int:
        if self.mining is None:
            return RULE_NONE.value
        return RULE_JOINT.value if self.mined_by_score else RULE_MARKS.value

    @property
    def masked(self) -> bool:
        return self.has_ids or self.rule != RULE_NONE.value

    @property
    def attract(self) -> bool:
        return self.mining is None or self.mining.attracts

    @property
    def threshold(self) -> float:
        threshold = None if self.mining is None else self.mining.threshold
        return float("-inf") if threshold is None else threshold

    def options(self) -> dict[str, bool | int]:
        """The arguments that kernels which look for known pairs share."""
        return {"HAS_IDS": self.has_ids, "RULE": self.rule, "ATTRACT": self.attract}

    def of(self, block: Block, features: Features | None) -> BlockPositives:
        """Against the texts of `block`."""
        rows: dict[Side, Tensor] = {}
        columns: dict[Side, Tensor] = {}
        if self.rule == RULE_MARKS.value and self.lists is None and features is not None:
            rows = {side: aligned(each) for side, each in features.own.items()}
            columns = {side: aligned(each) for side, each in block.every.items()}
        return BlockPositives(self, block.columns, rows, columns)


@dataclass(frozen=True, slots=True)
class BlockPositives:
    """The positives of the local rows among a block of columns, numbered from the first of them.

    Attributes:
        all: Of the batch.
        columns: Global indices of the block.
        left: Guide features of the local rows, aligned, if a threshold reads them.
        right: Those of the columns.
    """

    all: Positives
    columns: slice
    left: Mapping[Side, Tensor]
    right: Mapping[Side, Tensor]

    @property
    def first(self) -> int:
        """The column that would be own to local row 0; it may lie outside of the block."""
        return self.all.own.start - self.columns.start

    @property
    def groups(self) -> tuple[Tensor, Tensor]:
        """Of the local rows and of the columns."""
        return self.all.groups[self.all.own], self.all.groups[self.columns]

    def marks(self, rows: Range, columns: Range, shape: Shape) -> TensorDescriptor | None:
        """The marks of local `rows` and `columns`, if the rule reads any."""
        if self.all.rule != RULE_MARKS.value:
            return None
        marks = self._similar(rows, columns) if self.all.lists is None else self._listed(self.all.lists, rows, columns)
        return tiled(marks, shape.rows, shape.columns)

    def _similar(self, rows: Range, columns: Range) -> Tensor:
        assert self.all.mining is not None
        marks = self.all.groups.new_empty(_height(rows), _pitch(columns), dtype=torch.uint8)
        decide = tile_products(self.all.mining.guide)
        if len(decide) == 1:
            both = ROW_MARK.value | COLUMN_MARK.value
            for number, product in enumerate(decide[0]):
                # Of two similarities the smaller one decides, so a pair must reach the threshold in both.
                self._mark(marks, product, rows, columns, both, meet=(AND if number else STORE).value)
            return marks
        (of_rows,), (of_columns,) = decide
        self._mark(marks, of_rows, rows, columns, ROW_MARK.value, meet=STORE.value)
        self._mark(marks, of_columns, rows, columns, COLUMN_MARK.value, meet=OR.value)
        return marks

    def _mark(
        self, marks: Tensor, product: tuple[Side, Side], rows: Range, columns: Range, bits: int, *, meet: int
    ) -> None:
        left, right = self.left[product[0]], self.right[product[1]]
        shape = shape_for(left.dtype, left.device, masked=False)
        grid = (ceil_div(_height(rows), shape.rows), ceil_div(columns[1] - columns[0], shape.columns))
        launch(
            threshold_kernel,
            grid,
            tiled(left, shape.rows, shape.depth),
            tiled(right, shape.columns, shape.depth),
            tiled(marks, shape.rows, shape.columns),
            self.all.threshold,
            bits,
            rows[0],
            columns[0],
            left.shape[1],
            MEET=meet,
            **shape.options(),
        )

    def _listed(self, lists: MinedLists, rows: Range, columns: Range) -> Tensor:
        first = self.columns.start
        by_row, by_column = lists.masks(slice(*rows), slice(first + columns[0], first + columns[1]))
        marks = by_row.new_zeros(_height(rows), _pitch(columns), dtype=torch.uint8)
        inside = marks[:, : columns[1] - columns[0]]
        inside.add_(by_row, alpha=ROW_MARK.value).add_(by_column, alpha=COLUMN_MARK.value)
        return marks


def positives_of(problem: Problem) -> Positives:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    groups, sizes = _groups(problem)
    return Positives(
        groups=groups,
        group_sizes=sizes,
        has_ids=problem.ids is not None,
        mining=problem.mining,
        mined_by_score=problem.mined_by_score,
        lists=problem.mined_lists(lambda products: _nearest(problem, products)),
        own=problem.span.own,
    )


def _groups(problem: Problem) -> tuple[Tensor, Tensor]:
    """A number for each different id, int32 [total], and how many share it, float32 [total]; nothing is read back."""
    total = problem.span.total
    numbers = torch.arange(total, device=problem.image.device)
    if problem.ids is None:
        return numbers.int(), problem.scale.new_ones(total, dtype=torch.float32)
    ordered, order = problem.ids.sort(stable=True)
    is_new = torch.ones_like(ordered)
    is_new[1:] = ordered[1:] != ordered[:-1]
    groups = torch.empty_like(order).scatter_(0, order, is_new.cumsum(0) - 1)
    sizes = torch.zeros_like(groups).index_add_(0, groups, torch.ones_like(groups))
    return groups.int(), sizes[groups].float()


def _nearest(problem: Problem, products: Products) -> Tensor:
    """The mined candidates of each local anchor, int32 [local, top_k], -1 for none."""
    mining = problem.mining
    assert mining is not None
    assert mining.top_k is not None
    assert problem.features is not None
    own = problem.features.own
    shape = shape_for(own[products[0][0]].dtype, problem.image.device, masked=True)

    def candidates() -> Iterator[Candidates]:
        for block in problem.blocks():
            yield Candidates(block.columns.start, [(own[a], block.every[c]) for a, c in products])

    span = problem.span
    return nearest_of(candidates(), span.local, span.first, shape, top_k=mining.top_k, threshold=mining.threshold)


def _height(rows: Range) -> int:
    return rows[1] - rows[0]


def _pitch(columns: Range) -> int:
    width = columns[1] - columns[0]
    return width + -width % ALIGNMENT
