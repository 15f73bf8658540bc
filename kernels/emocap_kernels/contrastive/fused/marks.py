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
from emocap_kernels.contrastive.problem import (
    IMAGE_ANCHORS,
    TEXT_ANCHORS,
    Block,
    Features,
    Problem,
    Products,
    Side,
    flipped,
)
from emocap_kernels.distributed.numbers import gather_rows
from emocap_kernels.fused.descriptors import ALIGNMENT, aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.nearest import Candidates, nearest_of
from emocap_kernels.fused.shapes import Shape, shape_for
from emocap_kernels.mining import Mining

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Positives:
    """What decides the positives of any tile, beside the guide features.

    Attributes:
        groups: int32 [total]; known positives are those of the same group.
        group_sizes: float32 [total], of the group of each.
        has_ids: If groups may hold more than one.
        mining: None for known pairs alone.
        is_logit: If guide `joint` is the score itself.
        by_row: With `top_k`: mined columns of each local row, int32 [local, top_k], -1 for none.
        by_column: With `top_k`: mined rows of each column, by global index, int32 [total, top_k].
        own: Where the local rows lie.
    """

    groups: Tensor
    group_sizes: Tensor
    has_ids: bool
    mining: Mining | None
    is_logit: bool
    by_row: Tensor | None
    by_column: Tensor | None
    own: slice

    @property
    def rule(self) -> int:
        if self.mining is None:
            return RULE_NONE.value
        joint = self.mining.guide == "joint" and self.is_logit and self.mining.top_k is None
        return RULE_JOINT.value if joint else RULE_MARKS.value

    @property
    def masked(self) -> bool:
        return self.has_ids or self.rule != RULE_NONE.value

    @property
    def attract(self) -> bool:
        return self.mining is None or self.mining.treatment == "attract"

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
        if self.rule == RULE_MARKS.value and self.by_row is None and features is not None:
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
        if self.all.by_row is not None and self.all.by_column is not None:
            marks = self._listed(self.all.by_row, self.all.by_column[self.columns], rows, columns)
        else:
            marks = self._similar(rows, columns)
        return tiled(marks, shape.rows, shape.columns)

    def _similar(self, rows: Range, columns: Range) -> Tensor:
        assert self.all.mining is not None
        guide = self.all.mining.guide
        images, texts = IMAGE_ANCHORS[guide], flipped(TEXT_ANCHORS[guide])
        marks = self.all.groups.new_empty(_height(rows), _pitch(columns), dtype=torch.uint8)
        both = ROW_MARK.value | COLUMN_MARK.value
        if images == texts:
            for number, product in enumerate(images):
                self._mark(marks, product, rows, columns, both, meet=AND.value if number else STORE.value)
            return marks
        self._mark(marks, images[0], rows, columns, ROW_MARK.value, meet=STORE.value)
        self._mark(marks, texts[0], rows, columns, COLUMN_MARK.value, meet=OR.value)
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

    def _listed(self, by_row: Tensor, by_column: Tensor, rows: Range, columns: Range) -> Tensor:
        height, pitch = _height(rows), _pitch(columns)
        # One byte more, where pairs outside of the chunk go.
        marks = by_row.new_zeros(height * pitch + 1, dtype=torch.uint8)
        outside = height * pitch
        column = by_row[rows[0] : rows[1]].long() - self.columns.start
        row = torch.arange(height, device=marks.device)[:, None]
        inside = (column >= columns[0]) & (column < columns[1])
        place = torch.where(inside, row * pitch + column - columns[0], outside).flatten()
        marks.index_fill_(0, place, ROW_MARK.value)
        row = by_column[columns[0] : columns[1]].long() - self.all.own.start
        column = torch.arange(columns[1] - columns[0], device=marks.device)[:, None]
        inside = (row >= rows[0]) & (row < rows[1])
        place = torch.where(inside, (row - rows[0]) * pitch + column, outside).flatten()
        marks.scatter_(0, place, marks[place] | COLUMN_MARK.value)
        return marks[:outside].view(height, pitch)


def positives_of(problem: Problem) -> Positives:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    groups, sizes = _groups(problem)
    mining, features = problem.mining, problem.features
    by_row = by_column = None
    if mining is not None and mining.top_k is not None:
        images, texts = IMAGE_ANCHORS[mining.guide], TEXT_ANCHORS[mining.guide]
        by_row = _nearest(problem, mining, images)
        lists = by_row if texts == images else _nearest(problem, mining, texts)
        by_column = gather_rows(lists, problem.span, problem.ranks)
    return Positives(
        groups=groups,
        group_sizes=sizes,
        has_ids=problem.ids is not None,
        mining=mining,
        is_logit=features is not None and features.is_logit,
        by_row=by_row,
        by_column=by_column,
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


def _nearest(problem: Problem, mining: Mining, products: Products) -> Tensor:
    """The mined candidates of each local anchor, int32 [local, top_k], -1 for none."""
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
