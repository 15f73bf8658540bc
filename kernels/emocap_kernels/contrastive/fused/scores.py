"""One score matrix as kernels take it: both sides, the slope, and the shift of the exponent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels.margins import IMAGE_NORM, OWN, TEXT_NORM, margins_kernel
from emocap_kernels.contrastive.fused.kernels.margins import LINES as MARGIN_LINES
from emocap_kernels.contrastive.fused.launch import launch
from emocap_kernels.contrastive.fused.shapes import Shape
from emocap_kernels.distributed import Ranks, Span, largest_over_

LOG2_E = 1.0 / math.log(2.0)
# Exponents of float32: sums stay below 2^127, and a sum above B 2^-102 loses less than a rounding to underflow.
LARGEST, LEAST = 127.0, -102.0
# Rows and strips of a tile copy begin on addresses of this many bytes.
ALIGNMENT = 16


def aligned(vectors: Tensor) -> Tensor:
    """[rows, width] whose rows begin on multiples of 16 bytes, filled up with zeros; the same tensor if it fits."""
    missing = -vectors.shape[1] % (ALIGNMENT // vectors.element_size())
    if missing:
        return pad(vectors, (0, missing))
    rows, width = vectors.shape
    fits = vectors.stride() == (width, 1) and vectors.data_ptr() % ALIGNMENT == 0
    return vectors if fits else vectors.new_empty(rows, width).copy_(vectors)


def tiled(vectors: Tensor, rows: int, depth: int) -> TensorDescriptor:
    """Describes tiles of `vectors`; a rank without rows describes one of zeros, of which no program asks."""
    held = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
    return TensorDescriptor.from_tensor(held, [rows, depth])


@dataclass(frozen=True, slots=True)
class Sides:
    """Local rows and all columns.

    Attributes:
        left: [local, width], aligned.
        right: [total, width], aligned.
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
class Scores(Sides):
    """`slope` times the cosines of both sides, in base 2.

    Attributes:
        slope: float32 [1].
        shift: float32 [1], subtracted from every score before the exponential.
        steep: bool [1], true where one shift does not fit all sums.
    """

    slope: Tensor
    shift: Tensor
    steep: Tensor


def scores_of(left: Tensor, right: Tensor, scale: Tensor, span: Span, ranks: Ranks, shape: Shape) -> Scores:
    """Chooses the shift from `scale` and the size of the batch, and tests it on the device; the ranks agree."""
    left, right = aligned(left), aligned(right)
    slope = (scale.detach().float() * LOG2_E).reshape(1)
    log_total = math.log2(span.total)
    shift = (1.02 * slope + log_total).ceil().sub_(LARGEST - 1).clamp_(min=0.0)
    negated_own, image_norm, text_norm = _margins(left, right, span, ranks).unbind()
    fits = (slope >= 0) & (-negated_own * slope - shift >= LEAST + log_total)
    fits &= slope * (image_norm * text_norm).sqrt() - shift + log_total <= LARGEST
    return Scores(left, right, shape, slope, shift, ~fits)


def _margins(left: Tensor, right: Tensor, span: Span, ranks: Ranks) -> Tensor:
    """Largest over all ranks: the negated own cosine, and the squared norms of both sides, float32 [3]."""
    nothing = left.new_zeros(1, dtype=torch.float32)
    largest = torch.cat([nothing - math.inf, nothing, nothing])
    if span.local > 0:
        rows = 32
        programs = ceil_div(span.local, rows)
        margins = left.new_empty(MARGIN_LINES, programs, dtype=torch.float32)
        launch(
            margins_kernel,
            (programs,),
            left,
            right,
            margins,
            span.first,
            span.local,
            left.shape[1],
            left.stride(0),
            right.stride(0),
            bR=rows,
            bD=128,
        )
        own, image_norm, text_norm = margins[OWN.value], margins[IMAGE_NORM.value], margins[TEXT_NORM.value]
        largest = torch.stack([-own.amin(), image_norm.amax(), text_norm.amax()])
    largest_over_(largest, ranks)
    return largest
