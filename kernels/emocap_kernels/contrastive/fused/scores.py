"""Describes a score matrix for kernels: the two sides of the matrix product, and the scaling of the exponents.

`choose_exponent_scale` implements decision 9: the same number, the shift, is subtracted from all exponents of a batch
if no sum overflows or underflows with it. Otherwise each sum has a running maximum of its own. The module docstring of
`kernels.statistics` derives the bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.fused.kernels.score_bounds import (
    IMAGE_NORM,
    N_FIELDS,
    OWN_COSINE,
    TEXT_NORM,
    score_bounds_kernel,
)
from emocap_kernels.distributed.ranks import Partition, Ranks
from emocap_kernels.distributed.reductions import all_reduce_max_
from emocap_kernels.fused.launch import aligned, launch, tile_descriptor
from emocap_kernels.fused.tiling import TileConfig

LOG2_E = 1.0 / math.log(2.0)
# Exponents of float32: a sum must stay below 2^127. In a sum above B 2^-102, underflow changes less than rounding does.
MAX_EXPONENT, MIN_EXPONENT = 127.0, -102.0
# Rows of a program of `score_bounds_kernel`.
BOUND_ROWS = 32


@dataclass(frozen=True, slots=True)
class Operands:
    """Holds the two sides of a matrix product: the local rows and a block of columns.

    Attributes:
        left: [local, width], padded by `aligned` so that each row begins at an aligned address.
        right: [columns, width], padded in the same way.
        tile: The size of the tiles in which kernels compute the product.
    """

    left: Tensor
    right: Tensor
    tile: TileConfig

    @property
    def width(self) -> int:
        """Returns the width of the vectors, padding included."""
        return self.left.shape[1]

    def descriptors(self) -> tuple[TensorDescriptor, TensorDescriptor]:
        """Returns the descriptors by which kernels load tiles of the left and of the right side."""
        tile = self.tile
        return (
            tile_descriptor(self.left, tile.rows, tile.depth),
            tile_descriptor(self.right, tile.columns, tile.depth),
        )


@dataclass(frozen=True, slots=True)
class ExponentScale:
    """Holds the numbers that turn the cosines of a batch into exponents of powers of two.

    All are tensors, because the host never reads them. They are equal on all ranks, so all ranks use the same variant
    of the kernels (one shift for all sums, or a running maximum for each sum).

    Attributes:
        slope: float32 [1]; a score in base 2 is `slope` times a cosine.
        shift: float32 [1], subtracted from every score before the exponential.
        needs_running_max: bool [1], True if one shift does not fit all sums. Then kernels keep each sum relative to a
            running maximum of its own.
    """

    slope: Tensor
    shift: Tensor
    needs_running_max: Tensor


def choose_exponent_scale(
    left: Tensor, own: Tensor, scale: Tensor, partition: Partition, ranks: Ranks
) -> ExponentScale:
    """Chooses the shift from `scale` and the size of the batch, and tests on the device whether it fits.

    The shift is subtracted from all scores before the exponential. It fits if no sum of exponentials overflows or
    underflows in float32. This is a collective: all ranks must call it, and all get the same result. No value is copied
    to the host.

    Args:
        left: [local, width], the vectors of the local rows of the score matrix.
        own: [local, width]. Row r belongs to the same sample as row r of `left`.
        scale: 0-dim, the factor of the cosines.
        partition: The division of the rows among the ranks.
        ranks: The ranks of the batch.
    """
    slope = (scale.detach().float() * LOG2_E).reshape(1)
    log_total = math.log2(partition.total)
    # The largest possible sum has B terms of 2^slope, so its exponent is slope + log2(B), and the shift lowers it to at
    # most 126. Products of unit vectors in half precision may exceed 1 a little, hence 1.02.
    shift = (1.02 * slope + log_total).ceil().sub_(MAX_EXPONENT - 1).clamp_(min=0.0)
    negated_own, left_norm, right_norm = _score_bounds(aligned(left), aligned(own), ranks).unbind()
    # Every text is the own text of some row, so the bounds cover all columns, although each rank sees its rows alone.
    # No sum underflows: each contains the own pair of its anchor.
    fits = (slope >= 0) & (-negated_own * slope - shift >= MIN_EXPONENT + log_total)
    # No sum overflows: no score exceeds the product of the largest norms.
    fits &= slope * (left_norm * right_norm).sqrt() - shift + log_total <= MAX_EXPONENT
    # A bound that is NaN does not fit, because comparisons with NaN are False.
    return ExponentScale(slope, shift, ~fits)


def _score_bounds(left: Tensor, own: Tensor, ranks: Ranks) -> Tensor:
    """Returns three maxima over the rows of all ranks, float32 [3]. This is a collective.

    They are the maximum of the negated cosine of row r of `left` with row r of `own`, and the maxima of the squared
    norms of `left` and of `own`.
    """
    # A rank without rows takes part in the all-reduce with values that change no maximum.
    nothing = left.new_zeros(1, dtype=torch.float32)
    largest = torch.cat([nothing - math.inf, nothing, nothing])
    if len(left) > 0:
        programs = ceil_div(len(left), BOUND_ROWS)
        bounds = left.new_empty(N_FIELDS, programs, dtype=torch.float32)
        launch(
            score_bounds_kernel,
            (programs,),
            left,
            own,
            bounds,
            len(left),
            left.shape[1],
            left.stride(0),
            own.stride(0),
            bR=BOUND_ROWS,
            bD=128,
        )
        own_cosine, left_norm, right_norm = bounds[OWN_COSINE.value], bounds[IMAGE_NORM.value], bounds[TEXT_NORM.value]
        # The least cosine is negated, so that one all-reduce by maximum serves all three.
        largest = torch.stack([-own_cosine.amin(), left_norm.amax(), right_norm.amax()])
    all_reduce_max_(largest, ranks)
    return largest
