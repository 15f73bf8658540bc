"""What kernels compare and read of the positives of the local loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
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
from emocap_kernels.region.positives import OwnSentences
from emocap_kernels.region.problem import Block, RegionProblem
from emocap_kernels.targets import Masks

# Own sentences of an image that are compared at once.
OWN_SENTENCES = 16


@dataclass(frozen=True, slots=True)
class KernelComparison:
    """Compares sentences by kernels, without asking the host for anything.

    Attributes:
        order: As in `OwnSentences`.
        starts: Those of `OwnSentences`, int32.
    """

    order: Tensor
    starts: Tensor

    @staticmethod
    def of(problem: RegionProblem) -> KernelComparison:
        own = OwnSentences.of(problem)
        return KernelComparison(own.order, own.starts.int())

    def reached(self, problem: RegionProblem, images: slice, block: Block, threshold: float) -> Tensor:
        """See `Comparison`."""
        number, width = images.stop - images.start, len(block.sentences)
        reached = self.order.new_empty(number, width, dtype=torch.uint8)
        shape = shape_for(block.sentences.dtype, self.order.device, masked=True)
        own = aligned(problem.sentences.detach().to(block.sentences.dtype)[self.order])
        launch(
            reached_kernel,
            (ceil_div(width, shape.rows), number),
            tiled(aligned(block.sentences), shape.rows, shape.depth),
            tiled(own, OWN_SENTENCES, shape.depth),
            self.starts[images.start :],
            reached,
            threshold,
            width,
            width,
            own.shape[1],
            **{**shape.options(), "bC": OWN_SENTENCES},
        )
        return reached != 0

    def nearest(self, problem: RegionProblem, mining: Mining) -> Tensor:
        """See `Comparison`; int32."""
        assert mining.top_k is not None
        own = problem.sentences.detach().to(problem.patches.dtype)
        shape: Shape = shape_for(own.dtype, own.device, masked=True)

        def candidates() -> Iterator[Candidates]:
            for block in problem.blocks():
                yield Candidates(block.columns.start, [(own, block.sentences)])

        lines = problem.lines
        return nearest_of(candidates(), lines.local, lines.first, shape, top_k=mining.top_k, threshold=mining.threshold)


def packed(targets: Masks) -> Tensor:
    """The marks that the gradient kernel reads, uint8 of the shape of the masks."""
    marks = targets.row_positive.to(torch.uint8) * ROW_POSITIVE.value
    marks |= targets.column_positive.to(torch.uint8) * COLUMN_POSITIVE.value
    if targets.row_dropped is not None and targets.column_dropped is not None:
        marks |= targets.row_dropped.to(torch.uint8) * ROW_DROPPED.value
        marks |= targets.column_dropped.to(torch.uint8) * COLUMN_DROPPED.value
    return marks
