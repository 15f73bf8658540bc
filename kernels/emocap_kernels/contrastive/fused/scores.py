"""One score matrix as kernels take it: both sides, the slope, and the shift of the exponent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels.margins import IMAGE_NORM, OWN, TEXT_NORM, margins_kernel
from emocap_kernels.contrastive.fused.kernels.margins import LINES as MARGIN_LINES
from emocap_kernels.distributed.numbers import largest_over_
from emocap_kernels.distributed.ranks import Ranks, Span
from emocap_kernels.fused.descriptors import aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.shapes import Shape

LOG2_E = 1.0 / math.log(2.0)
# Exponents of float32: sums stay below 2^127, and a sum above B 2^-102 loses less than a rounding to underflow.
LARGEST, LEAST = 127.0, -102.0


@dataclass(frozen=True, slots=True)
class Sides:
    """Local rows and a block of columns.

    Attributes:
        left: [local, width], aligned.
        right: [columns, width], aligned.
        shape: Of the tiles.
    """

    left: Tensor
    right: Tensor
    shape: Shape

    @property
    def width(self) -> int:
        return self.left.shape[1]

    def described(self) -> tuple[TensorDescriptor, TensorDescriptor]:
        shape = self.shape
        return tiled(self.left, shape.rows, shape.depth), tiled(self.right, shape.columns, shape.depth)


@dataclass(frozen=True, slots=True)
class Exponents:
    """How cosines become exponents of two, for all scores of a batch.

    Attributes:
        slope: float32 [1]; a score is `slope` times a cosine.
        shift: float32 [1], subtracted from every score before the exponential.
        steep: bool [1], true where one shift does not fit all sums.
    """

    slope: Tensor
    shift: Tensor
    steep: Tensor


def exponents_of(left: Tensor, own: Tensor, scale: Tensor, span: Span, ranks: Ranks) -> Exponents:
    """Chooses the shift from `scale` and the size of the batch, and tests it on the device; the ranks agree.

    Args:
        left: [local, width].
        own: Row r is the column that belongs to row r of `left`.
        scale: 0-dim.
        span: Of the rows.
        ranks: Who holds the others.
    """
    slope = (scale.detach().float() * LOG2_E).reshape(1)
    log_total = math.log2(span.total)
    shift = (1.02 * slope + log_total).ceil().sub_(LARGEST - 1).clamp_(min=0.0)
    negated_own, left_norm, right_norm = _margins(aligned(left), aligned(own), ranks).unbind()
    fits = (slope >= 0) & (-negated_own * slope - shift >= LEAST + log_total)
    fits &= slope * (left_norm * right_norm).sqrt() - shift + log_total <= LARGEST
    return Exponents(slope, shift, ~fits)


def _margins(left: Tensor, own: Tensor, ranks: Ranks) -> Tensor:
    """Largest over all ranks: the negated own cosine, and the squared norms of both sides, float32 [3]."""
    nothing = left.new_zeros(1, dtype=torch.float32)
    largest = torch.cat([nothing - math.inf, nothing, nothing])
    if len(left) > 0:
        rows = 32
        programs = ceil_div(len(left), rows)
        margins = left.new_empty(MARGIN_LINES, programs, dtype=torch.float32)
        launch(
            margins_kernel,
            (programs,),
            left,
            own,
            margins,
            len(left),
            left.shape[1],
            left.stride(0),
            own.stride(0),
            bR=rows,
            bD=128,
        )
        own_cosine, left_norm, right_norm = margins[OWN.value], margins[IMAGE_NORM.value], margins[TEXT_NORM.value]
        largest = torch.stack([-own_cosine.amin(), left_norm.amax(), right_norm.amax()])
    largest_over_(largest, ranks)
    return largest
