"""Mined pairs of a rule that reads other similarities than the scores: marks of a chunk.

A mark is a byte of a bounded chunk: bit 1 if the row's anchor mined the pair, bit 2 if the column's did. A threshold
marks a chunk from the guide features, one matrix product for each similarity of the guide; the smaller of two
similarities reaches the threshold where both do.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import VARYING, cosines

# How a kernel's marks meet those that are already there.
STORE = tl.constexpr(0)
AND = tl.constexpr(1)
OR = tl.constexpr(2)


@triton.jit(do_not_specialize=VARYING)
def threshold_kernel(
    left_desc,
    right_desc,
    marks_desc,
    threshold,
    marks,
    top,
    left,
    nD,
    MEET: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of marks: `marks` where the similarity reaches the threshold. Tile (0, 0) begins at (top, left)."""
    row = tl.program_id(0) * bR
    column = tl.program_id(1) * bC
    similarity_RC = cosines(left_desc, right_desc, top + row, left + column, nD, bR, bC, bD, PRECISION, WIDEN)
    marks_RC = tl.where(similarity_RC >= threshold, marks, 0).to(tl.uint8)
    if MEET == AND:
        marks_RC &= marks_desc.load([row, column])
    if MEET == OR:
        marks_RC |= marks_desc.load([row, column])
    marks_desc.store([row, column], marks_RC)
