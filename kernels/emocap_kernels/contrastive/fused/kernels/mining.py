"""Contains the kernel that mines pairs by a threshold on similarities other than the scores.

It writes a mask with one byte for each pair of a chunk. The bit `MINED_BY_ROW` is set if the pair was mined for the
row's anchor, the bit `MINED_BY_COLUMN` if it was mined for the column's anchor. For an anchor, the mining rule compares
one or two similarities with the threshold. A pair is mined if all of them reach it. Each similarity needs one matrix
product.

The kernels that compute scores load the mask by a descriptor, tile by tile (`mined_pairs`). An earlier version loaded
its bytes by pointers. Each pair then needed a 64-bit address, and 7 KB of registers were spilled (docs/log.md,
2026-11-23).
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED, cosines

# Axes:  R rows of a tile   C columns of a tile   D embedding   b* size of a tile along *   n* how many there are

# The ways in which new bits are combined with those that are in the mask already.
STORE = tl.constexpr(0)
AND = tl.constexpr(1)
OR = tl.constexpr(2)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def threshold_kernel(
    left_desc_RD,
    right_desc_CD,
    mask_desc_RC,
    threshold,
    bits,
    top,
    left,
    nD,
    COMBINE: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Writes one tile of a mask: `bits` where the similarity reaches the threshold, else 0.

    Program (i, j) computes tile (i, j) of the chunk that begins at row `top` and column `left`.

    Reads:
        left_desc_RD, right_desc_CD: The vectors that mining compares (guide features), for rows and columns.
        mask_desc_RC: Only if COMBINE is AND or OR: the bits that an earlier launch of this kernel wrote.
    Writes:
        mask_desc_RC: uint8. The new bits replace the earlier ones (STORE) or are combined with them (AND, OR).
    """
    row = tl.program_id(0) * bR
    column = tl.program_id(1) * bC
    similarity_RC = cosines(left_desc_RD, right_desc_CD, top + row, left + column, nD, bR, bC, bD, PRECISION, WIDEN)
    # Beyond the end the similarities are 0 and may reach the threshold. No kernel relies on the mask there.
    mask_RC = tl.where(similarity_RC >= threshold, bits, 0).to(tl.uint8)
    if COMBINE == AND:
        mask_RC &= mask_desc_RC.load([row, column])
    if COMBINE == OR:
        mask_RC |= mask_desc_RC.load([row, column])
    mask_desc_RC.store([row, column], mask_RC)
