"""The positives of a problem as kernels take them: groups of known pairs, and the rule that mines the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels.mining import AND, OR, STORE, nearest_kernel, threshold_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import COLUMN_MARK, ROW_MARK, RULE_JOINT, RULE_MARKS, RULE_NONE
from emocap_kernels.contrastive.fused.launch import launch
from emocap_kernels.contrastive.fused.scores import ALIGNMENT, aligned, tiled
from emocap_kernels.contrastive.fused.shapes import Shape, shape_for, strips
from emocap_kernels.contrastive.problem import IMAGE_ANCHORS, TEXT_ANCHORS, Features, Problem, Products, flipped
from emocap_kernels.distributed import gather_rows
from emocap_kernels.mining import Mining

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Positives:
    """What decides the positives of any tile.

    Attributes:
        groups: int32 [total]; known positives are those of the same group.
        group_sizes: float32 [total], of the group of each.
        has_ids: If groups may hold more than one.
        mining: None for known pairs alone.
        features: Of the guide, aligned.
        by_row: With `top_k`: mined columns of each local row, int32 [local, top_k], -1 for none.
        by_column: With `top_k`: mined rows of each column, by global index, int32 [total, top_k].
        first: Global index of local row 0.
    """

    groups: Tensor
    group_sizes: Tensor
    has_ids: bool
    mining: Mining | None
    features: Features | None
    by_row: Tensor | None
    by_column: Tensor | None
    first: int

    @property
    def rule(self) -> int:
        if self.mining is None or self.features is None:
            return RULE_NONE.value
        joint = self.mining.guide == "joint" and self.features.is_logit and self.mining.top_k is None
        return RULE_JOINT.value if joint else RULE_MARKS.value

    @property
    def masked(self) -> bool:
        return self.has_ids or self.rule != RULE_NONE.value

    @property
    def attract(self) -> bool:
        return self.mining is None or self.mining.treatment == "attract"

    def options(self) -> dict[str, bool | int]:
        """The arguments that kernels which look for known pairs share."""
        return {"HAS_IDS": self.has_ids, "RULE": self.rule, "ATTRACT": self.attract}

    @property
    def threshold(self) -> float:
        threshold = None if self.mining is None else self.mining.threshold
        return float("-inf") if threshold is None else threshold

    def tensors(self) -> list[Tensor]:
        """What must not change between forward and backward."""
        features = [] if self.features is None else [*self.features.own.values(), *self.features.every.values()]
        return [self.groups, *features]

    def marks(self, rows: Range, columns: Range, shape: Shape) -> TensorDescriptor | None:
        """The marks of local `rows` and `columns`, if the rule reads any."""
        if self.rule != RULE_MARKS.value:
            return None
        if self.by_row is not None and self.by_column is not None:
            marks = self._listed(self.by_row, self.by_column, rows, columns)
        else:
            marks = self._similar(rows, columns)
        return tiled(marks, shape.rows, shape.columns)

    def _similar(self, rows: Range, columns: Range) -> Tensor:
        assert self.mining is not None
        assert self.features is not None
        guide = self.mining.guide
        images, texts = IMAGE_ANCHORS[guide], flipped(TEXT_ANCHORS[guide])
        marks = self.groups.new_empty(_height(rows), _pitch(columns), dtype=torch.uint8)
        both = ROW_MARK.value | COLUMN_MARK.value
        if images == texts:
            for number, product in enumerate(images):
                self._mark(marks, product, rows, columns, both, meet=AND.value if number else STORE.value)
            return marks
        self._mark(marks, images[0], rows, columns, ROW_MARK.value, meet=STORE.value)
        self._mark(marks, texts[0], rows, columns, COLUMN_MARK.value, meet=OR.value)
        return marks

    def _mark(
        self, marks: Tensor, product: tuple[str, str], rows: Range, columns: Range, bits: int, *, meet: int
    ) -> None:
        assert self.features is not None
        left, right = self.features.own[product[0]], self.features.every[product[1]]  # pyright: ignore[reportArgumentType]
        shape = shape_for(left.dtype, left.device, masked=False)
        grid = (ceil_div(_height(rows), shape.rows), ceil_div(columns[1] - columns[0], shape.columns))
        launch(
            threshold_kernel,
            grid,
            tiled(left, shape.rows, shape.depth),
            tiled(right, shape.columns, shape.depth),
            tiled(marks, shape.rows, shape.columns),
            self.threshold,
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
        column = by_row[rows[0] : rows[1]].long()
        row = torch.arange(height, device=marks.device)[:, None]
        inside = (column >= columns[0]) & (column < columns[1])
        place = torch.where(inside, row * pitch + column - columns[0], outside).flatten()
        marks.index_fill_(0, place, ROW_MARK.value)
        row = by_column[columns[0] : columns[1]].long() - self.first
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
    if mining is not None and features is not None:
        features = Features(
            {side: aligned(each) for side, each in features.own.items()},
            {side: aligned(each) for side, each in features.every.items()},
            features.is_logit,
        )
        if mining.top_k is not None:
            images, texts = IMAGE_ANCHORS[mining.guide], TEXT_ANCHORS[mining.guide]
            by_row = _nearest(problem, mining, features, images)
            lists = by_row if texts == images else _nearest(problem, mining, features, texts)
            by_column = gather_rows(lists, problem.span, problem.ranks)
    return Positives(
        groups=groups,
        group_sizes=sizes,
        has_ids=problem.ids is not None,
        mining=mining,
        features=features if mining is not None else None,
        by_row=by_row,
        by_column=by_column,
        first=problem.span.first,
    )


def _groups(problem: Problem) -> tuple[Tensor, Tensor]:
    """A number for each different id, int32 [total], and how many share it, float32 [total]; nothing is read back."""
    total = problem.span.total
    numbers = torch.arange(total, device=problem.text.device)
    if problem.ids is None:
        return numbers.int(), problem.scale.new_ones(total, dtype=torch.float32)
    ordered, order = problem.ids.sort(stable=True)
    is_new = torch.ones_like(ordered)
    is_new[1:] = ordered[1:] != ordered[:-1]
    groups = torch.empty_like(order).scatter_(0, order, is_new.cumsum(0) - 1)
    sizes = torch.zeros_like(groups).index_add_(0, groups, torch.ones_like(groups))
    return groups.int(), sizes[groups].float()


def _nearest(problem: Problem, mining: Mining, features: Features, products: Products) -> Tensor:
    """The mined candidates of each local anchor, int32 [local, top_k], -1 for none."""
    assert mining.top_k is not None
    span, top_k = problem.span, mining.top_k
    anchor, candidate = products[0]
    second_anchor, second_candidate = products[-1]
    left, second_left = features.own[anchor], features.own[second_anchor]
    right, second_right = features.every[candidate], features.every[second_candidate]
    if span.local == 0:
        return left.new_empty(0, top_k, dtype=torch.int32)
    shape = shape_for(left.dtype, left.device, masked=True)
    number, strip = strips(span.local, span.total, shape)
    slots = 1 << max(1, (top_k - 1).bit_length())
    values = left.new_full((number, span.local, slots), float("-inf"), dtype=torch.float32)
    indices = left.new_full((number, span.local, slots), -1, dtype=torch.int32)
    launch(
        nearest_kernel,
        (ceil_div(span.local, shape.rows), number),
        tiled(left, shape.rows, shape.depth),
        tiled(right, shape.columns, shape.depth),
        tiled(second_left, shape.rows, shape.depth),
        tiled(second_right, shape.columns, shape.depth),
        values,
        indices,
        float("-inf") if mining.threshold is None else mining.threshold,
        span.first,
        span.local,
        span.total,
        strip,
        left.shape[1],
        second_left.shape[1],
        TOP_K=top_k,
        bK=slots,
        TWO=len(products) > 1,
        **shape.options(),
    )
    # Strips are in the order of their columns, so a stable sort keeps the lower index first among equals.
    values, indices = values.transpose(0, 1).flatten(1), indices.transpose(0, 1).flatten(1)
    return indices.gather(1, values.sort(dim=1, descending=True, stable=True).indices[:, :top_k])


def _height(rows: Range) -> int:
    return rows[1] - rows[0]


def _pitch(columns: Range) -> int:
    width = columns[1] - columns[0]
    return width + -width % ALIGNMENT
