"""What kernels of both losses do with a tile: its product, and where its statistics go."""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# Dimension key:  R rows of a tile   C its columns   D embedding   b* size of one tile along *   n* how many there are

# Numbers that change from launch to launch: compiling a kernel anew for each that happens to be 1 or a multiple of 16
# would cost seconds in the middle of training.
VARYING = [
    "first",
    "top",
    "bottom",
    "left",
    "right",
    "strip",
    "marks",
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
    left_desc,
    right_desc,
    row,
    column,
    nD,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products of `bR` rows of the left side and `bC` of the right one, float32; 0 beyond the end of either."""
    cosine_RC = tl.zeros([bR, bC], tl.float32)
    for d in range(0, nD, bD):
        left_RD = left_desc.load([row, d])
        right_CD = right_desc.load([column, d])
        if WIDEN:
            left_RD = left_RD.to(tl.float32)
            right_CD = right_CD.to(tl.float32)
        cosine_RC = tl.dot(left_RD, right_CD.T, cosine_RC, input_precision=PRECISION)
    return cosine_RC


@triton.jit
def put(parts_ptr, stat: tl.constexpr, slot, n_slots, pitch, place, value, inside):
    """Into parts[stat, slot, place]."""
    line = tl.cast(slot, tl.int64) + stat * n_slots
    tl.store(parts_ptr + line * pitch + place, value, mask=inside)
