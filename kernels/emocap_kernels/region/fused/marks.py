"""The positives of the local loss as the device finds them, without asking the host for anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.distributed.numbers import gather_rows
from emocap_kernels.fused.descriptors import aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.nearest import Candidates, nearest_of
from emocap_kernels.fused.shapes import Shape, shape_for
from emocap_kernels.mining import Mining
from emocap_kernels.region.fused.kernels.mining import reached_kernel
from emocap_kernels.region.fused.kernels.pooling import (
    COLUMN_DROPPED,
    COLUMN_POSITIVE,
    ROW_DROPPED,
    ROW_POSITIVE,
)
from emocap_kernels.region.problem import Block, RegionProblem
from emocap_kernels.targets import Masks, treated

# Own sentences of an image that are compared at once.
OWN_SENTENCES = 16


@dataclass(frozen=True, slots=True)
class RegionPositives:
    """What decides the positives of any images and sentences, beside the sentences themselves.

    Attributes:
        owner: int64 [total sentences], global index of the owner.
        mining: None if own sentences are the only positives.
        order: The local sentences sorted by image, int64.
        starts: Where each local image begins in that order, int32 [local images + 1].
        lists: With `top_k`: the sentences mined for each sentence, int32 [total sentences, top_k], -1 for none.
    """

    owner: Tensor
    mining: Mining | None
    order: Tensor
    starts: Tensor
    lists: Tensor | None

    def targets(self, problem: RegionProblem, images: slice, block: Block) -> Masks:
        """For local `images` against the sentences of `block`."""
        rows = torch.arange(images.start, images.stop, device=self.owner.device) + problem.images.first
        known = self.owner[block.columns] == rows[:, None]
        if self.mining is None:
            return Masks(known, known)
        if self.lists is None:
            by_image = by_sentence = self._reached(problem, images, block)
        else:
            by_image = self._listed_by_image(problem, self.lists, images, block.columns)
            by_sentence = self._listed_by_sentence(problem, self.lists, images, block.columns)
        return treated(known, by_image, by_sentence, self.mining.treatment)

    def _reached(self, problem: RegionProblem, images: slice, block: Block) -> Tensor:
        assert self.mining is not None
        number, width = images.stop - images.start, len(block.sentences)
        reached = self.owner.new_empty(number, width, dtype=torch.uint8)
        shape = shape_for(block.sentences.dtype, self.owner.device, masked=True)
        own = aligned(problem.sentences.detach().to(block.sentences.dtype)[self.order])
        launch(
            reached_kernel,
            (ceil_div(width, shape.rows), number),
            tiled(aligned(block.sentences), shape.rows, shape.depth),
            tiled(own, OWN_SENTENCES, shape.depth),
            self.starts[images.start :],
            reached,
            self.mining.threshold,
            width,
            width,
            own.shape[1],
            **{**shape.options(), "bC": OWN_SENTENCES},
        )
        return reached != 0

    def _listed_by_image(self, problem: RegionProblem, lists: Tensor, images: slice, columns: slice) -> Tensor:
        """Image i reaches m if m was mined for a sentence of i."""
        own = problem.lines.own
        row = (self.owner[own] - problem.images.first - images.start)[:, None].expand(-1, lists.shape[1])
        return _scattered(row, lists[own].long() - columns.start, images, columns)

    def _listed_by_sentence(self, problem: RegionProblem, lists: Tensor, images: slice, columns: slice) -> Tensor:
        """Sentence n reaches image i if a sentence of i was mined for n."""
        mined = lists[columns].long()
        owner = torch.where(mined >= 0, self.owner[mined.clamp(min=0)], -1)
        row = owner - problem.images.first - images.start
        column = torch.arange(len(mined), device=mined.device)[:, None].expand_as(mined)
        return _scattered(row, column, images, columns)


def _scattered(row: Tensor, column: Tensor, images: slice, columns: slice) -> Tensor:
    """Bool [images, columns], true at the pairs that lie inside."""
    height, width = images.stop - images.start, columns.stop - columns.start
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # One more, where pairs outside go.
    found = torch.zeros(height * width + 1, dtype=torch.bool, device=row.device)
    found.index_fill_(0, torch.where(inside, row * width + column, height * width).flatten(), True)
    return found[:-1].view(height, width)


def packed(targets: Masks) -> Tensor:
    """The marks that the gradient kernel reads, uint8 of the shape of the masks."""
    marks = targets.row_positive.to(torch.uint8) * ROW_POSITIVE.value
    marks |= targets.column_positive.to(torch.uint8) * COLUMN_POSITIVE.value
    if targets.row_dropped is not None and targets.column_dropped is not None:
        marks |= targets.row_dropped.to(torch.uint8) * ROW_DROPPED.value
        marks |= targets.column_dropped.to(torch.uint8) * COLUMN_DROPPED.value
    return marks


def positives_of(problem: RegionProblem) -> RegionPositives:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    images = problem.owner[problem.lines.own] - problem.images.first
    by_image = images.sort(stable=True)
    edges = torch.arange(problem.images.local + 1, device=images.device)
    starts = torch.searchsorted(by_image.values, edges).int()
    mining, lists = problem.mining, None
    if mining is not None and mining.top_k is not None:
        lists = gather_rows(_nearest(problem, mining), problem.lines, problem.ranks)
    return RegionPositives(problem.owner, mining, by_image.indices, starts, lists)


def _nearest(problem: RegionProblem, mining: Mining) -> Tensor:
    """The sentences mined for each local sentence, int32 [local sentences, top_k]."""
    assert mining.top_k is not None
    own = problem.sentences.detach().to(problem.patches.dtype)
    shape: Shape = shape_for(own.dtype, own.device, masked=True)

    def candidates() -> Iterator[Candidates]:
        for block in problem.blocks():
            yield Candidates(block.columns.start, [(own, block.sentences)])

    lines = problem.lines
    return nearest_of(candidates(), lines.local, lines.first, shape, top_k=mining.top_k, threshold=mining.threshold)
