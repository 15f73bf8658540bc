"""Contains two functions that the kernels of both losses call: `cosines` and `store_part`."""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# Axes:  R rows of a tile   C columns of a tile   D embedding   F statistics   T slots   N anchors of one side
#        b* size of a tile along *   n* how many there are

# Arguments that change from launch to launch. Triton would compile a kernel again for each value that is 1 or a
# multiple of 16, which costs seconds in the middle of training. For the same reason, kernels name pointers into the
# middle of a tensor in `do_not_specialize_on_alignment`: their alignment changes with the place.
NOT_SPECIALIZED = [
    "first",
    "top",
    "bottom",
    "left",
    "right",
    "strip",
    "bits",
    "row_slot",
    "n_row_slots",
    "row_pitch",
    "n_column_slots",
    "column_pitch",
    "row_log_sums_pitch",
    "column_log_sums_pitch",
]


@triton.jit
def cosines(
    left_desc_RD,
    right_desc_CD,
    row,
    column,
    nD,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Returns the dot products of `bR` rows of the left matrix with `bC` rows of the right matrix, float32 [bR, bC].

    The rows of the left matrix begin at index `row`, those of the right matrix at index `column`. Rows beyond the end
    of a matrix are loaded as zeros, so their products are 0. Products are added along D in a fixed order, so that a
    tile has the same bits in every kernel. Forward and backward rely on this: both compute these values, and decide by
    them which pairs reach a threshold.
    """
    cosine_RC = tl.zeros([bR, bC], tl.float32)
    for d in range(0, nD, bD):
        left_RD = left_desc_RD.load([row, d])
        right_CD = right_desc_CD.load([column, d])
        if WIDEN:
            left_RD = left_RD.to(tl.float32)
            right_CD = right_CD.to(tl.float32)
        cosine_RC = tl.dot(left_RD, right_CD.T, cosine_RC, input_precision=PRECISION)
    return cosine_RC


@triton.jit
def store_part(parts_ptr_FTN, field: tl.constexpr, slot, n_slots, pitch, index_N, value_N, inside_N):
    """Writes `value_N` to parts[field, slot, index_N] where `inside_N` is set.

    `n_slots` and `pitch` are the lengths of the last two axes of `parts`.
    """
    line = tl.cast(slot, tl.int64) + field * n_slots
    tl.store(parts_ptr_FTN + line * pitch + index_N, value_N, mask=inside_N)
