r"""Sums over the candidates and the positives of every anchor, rows and columns from one exponential.

For unit vectors \(|z_{ij}| \le \mathrm{slope}\), so the constant

\[ h = \max(0, \lceil 1.02\,\mathrm{slope} + \log_2 B \rceil - 126) \]

keeps every sum of \(E_{ij} = 2^{z_{ij} - h}\) below \(2^{127}\). Row sums and column sums are then plain sums of the
same \(E_{ij}\): no running maximum, no second exponential, and tiles and ranks combine by addition. What could go wrong
is underflow: a sum loses less than a rounding as long as it exceeds \(B\,2^{-102}\), and since an anchor's own pair is
always a candidate, \(z_{ii} - h\) above that for all i is enough. The device itself tests this, and the norms of the
inputs, before the first tile (`margins.py`). Only where it fails (an own pair with a cosine below about -0.3 at scale
100, or vectors that are no unit vectors) the other variant of the kernel runs, which keeps each sum relative to a
running peak of its own: both are launched, and each looks at the test's result before it does anything.

Each program owns `bR` rows and walks over a strip of columns. Its row statistics stay in registers; the column
statistics of a tile go to a slot of their own. The slots are folded in a fixed order afterwards, without atomics: two
runs are equal to the bit.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.contrastive.fused.kernels.tiles import (
    RULE_NONE,
    add_two,
    found_pairs,
    has_known,
    log_sum_step,
    mined_pairs,
)
from emocap_kernels.fused.kernels.tiles import VARYING, cosines, put

# Lines of the parts. A positive is averaged in infonce: POSITIVE is the sum of its scores. In mil_nce it is summed:
# POSITIVE is the sum of 2^(score - POSITIVE_PEAK).
PEAK = tl.constexpr(0)
TOTAL = tl.constexpr(1)
BEST = tl.constexpr(2)
FOUND = tl.constexpr(3)
POSITIVE = tl.constexpr(4)
COUNT = tl.constexpr(5)
POSITIVE_PEAK = tl.constexpr(6)
LINES = 7


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["row_groups_ptr", "column_groups_ptr"])
def statistics_kernel(
    image_desc,
    text_desc,
    slope_ptr,
    shift_ptr,
    steep_ptr,
    row_groups_ptr,
    column_groups_ptr,
    marks_desc,
    row_parts_ptr,
    column_parts_ptr,
    threshold,
    first,
    top,
    bottom,
    left,
    right,
    strip,
    nD,
    row_slot,
    n_row_slots,
    row_pitch,
    n_column_slots,
    column_pitch,
    HAS_IDS: tl.constexpr,
    RULE: tl.constexpr,
    ATTRACT: tl.constexpr,
    SUM_POSITIVES: tl.constexpr,
    STEEP: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Statistics of the local rows [top, bottom) against the columns [left, right), `strip` of them in a program.

    Columns are those of a block; in their numbering
    local row 0 would be `first`, which may lie outside. Parts of rows lie in slots from `row_slot` on, one for each
    strip; parts
    of columns in one slot for each tile of rows.
    """
    if (tl.load(steep_ptr) != 0) != STEEP:
        return
    tile = tl.program_id(0)
    row = top + tile * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    own_R = first + row_R
    group_R = tl.load(row_groups_ptr + row_R, mask=inside_R, other=-1)
    slope = tl.load(slope_ptr)
    shift = tl.load(shift_ptr)
    peak_R = tl.full([bR], float("-inf"), tl.float32)
    best_R = tl.full([bR], float("-inf"), tl.float32)
    positive_peak_R = tl.full([bR], float("-inf"), tl.float32)
    total_R = tl.zeros([bR], tl.float32)
    found_R = tl.zeros([bR], tl.float32)
    positive_R = tl.zeros([bR], tl.float32)
    count_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        cosine_RC = cosines(image_desc, text_desc, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        group_C = tl.load(column_groups_ptr + column_C, mask=inside_C, other=-2)
        score_RC = cosine_RC * slope
        if (row + bR > bottom) | (column + bC > right):
            score_RC = tl.where(inside_R[:, None] & inside_C[None, :], score_RC, float("-inf"))

        touched = has_known(group_R, group_C, first + row, column, bR, bC, HAS_IDS)
        found_tile_R, found_C = found_pairs(score_RC, group_R, group_C, own_R, column_C, touched, bR, bC)
        positive_C = tl.zeros([bC], tl.float32)
        count_C = tl.zeros([bC], tl.float32)
        positive_peak_C = tl.full([bC], float("-inf"), tl.float32)
        if RULE == RULE_NONE:
            if touched:
                known_RC = group_R[:, None] == group_C[None, :]
                if SUM_POSITIVES:
                    known_score_RC = tl.where(known_RC, score_RC, float("-inf"))
                    positive_peak_R, positive_R = log_sum_step(positive_peak_R, positive_R, known_score_RC, 1)
                    positive_peak_C, positive_C = log_sum_step(positive_peak_C, positive_C, known_score_RC, 0)
                else:
                    known_score_RC = tl.where(known_RC, score_RC, 0.0)
                    positive_R += tl.sum(known_score_RC, 1)
                    positive_C = tl.sum(known_score_RC, 0)
        best_tile_R = tl.max(score_RC, 1)
        best_C = tl.max(score_RC, 0)
        found_R = tl.where(best_tile_R > best_R, found_tile_R, found_R)
        best_R = tl.maximum(best_R, best_tile_R)

        row_score_RC = score_RC
        column_score_RC = score_RC
        if RULE != RULE_NONE:
            by_row_RC, by_column_RC = mined_pairs(cosine_RC, threshold, marks_desc, row - top, column - left, RULE)
            known_RC = group_R[:, None] == group_C[None, :]
            if ATTRACT:
                # Beyond the end cosines are 0, which a threshold below 0 would mine.
                inside_RC = inside_R[:, None] & inside_C[None, :]
                by_row_RC = (by_row_RC | known_RC) & inside_RC
                by_column_RC = (by_column_RC | known_RC) & inside_RC
            else:
                row_score_RC = tl.where(by_row_RC & ~known_RC, float("-inf"), score_RC)
                column_score_RC = tl.where(by_column_RC & ~known_RC, float("-inf"), score_RC)
                by_row_RC = known_RC
                by_column_RC = known_RC
            if SUM_POSITIVES:
                positive_peak_R, positive_R = log_sum_step(
                    positive_peak_R, positive_R, tl.where(by_row_RC, score_RC, float("-inf")), 1
                )
                positive_peak_C, positive_C = log_sum_step(
                    positive_peak_C, positive_C, tl.where(by_column_RC, score_RC, float("-inf")), 0
                )
                count_R += tl.sum(by_row_RC.to(tl.float32), 1)
                count_C = tl.sum(by_column_RC.to(tl.float32), 0)
            else:
                positive_tile_R, count_tile_R = tl.reduce(
                    (tl.where(by_row_RC, score_RC, 0.0), by_row_RC.to(tl.float32)), 1, add_two
                )
                positive_R += positive_tile_R
                count_R += count_tile_R
                positive_C, count_C = tl.reduce(
                    (tl.where(by_column_RC, score_RC, 0.0), by_column_RC.to(tl.float32)), 0, add_two
                )

        if STEEP:
            peak_R, total_R = log_sum_step(peak_R, total_R, row_score_RC, 1)
            peak_C, total_C = log_sum_step(
                tl.full([bC], float("-inf"), tl.float32), tl.zeros([bC], tl.float32), column_score_RC, 0
            )
        else:
            total_R += tl.sum(tl.exp2(row_score_RC - shift), 1)
            total_C = tl.sum(tl.exp2(column_score_RC - shift), 0)
            peak_R = tl.full([bR], 0.0, tl.float32) + shift
            peak_C = tl.full([bC], 0.0, tl.float32) + shift

        put(column_parts_ptr, PEAK, tile, n_column_slots, column_pitch, column_C, peak_C, inside_C)
        put(column_parts_ptr, TOTAL, tile, n_column_slots, column_pitch, column_C, total_C, inside_C)
        put(column_parts_ptr, BEST, tile, n_column_slots, column_pitch, column_C, best_C, inside_C)
        put(column_parts_ptr, FOUND, tile, n_column_slots, column_pitch, column_C, found_C, inside_C)
        put(column_parts_ptr, POSITIVE, tile, n_column_slots, column_pitch, column_C, positive_C, inside_C)
        put(column_parts_ptr, COUNT, tile, n_column_slots, column_pitch, column_C, count_C, inside_C)
        if SUM_POSITIVES:
            put(
                column_parts_ptr, POSITIVE_PEAK, tile, n_column_slots, column_pitch, column_C, positive_peak_C, inside_C
            )

    slot = row_slot + tl.program_id(1)
    place_R = row_R - top
    put(row_parts_ptr, PEAK, slot, n_row_slots, row_pitch, place_R, peak_R, inside_R)
    put(row_parts_ptr, TOTAL, slot, n_row_slots, row_pitch, place_R, total_R, inside_R)
    put(row_parts_ptr, BEST, slot, n_row_slots, row_pitch, place_R, best_R, inside_R)
    put(row_parts_ptr, FOUND, slot, n_row_slots, row_pitch, place_R, found_R, inside_R)
    put(row_parts_ptr, POSITIVE, slot, n_row_slots, row_pitch, place_R, positive_R, inside_R)
    put(row_parts_ptr, COUNT, slot, n_row_slots, row_pitch, place_R, count_R, inside_R)
    if SUM_POSITIVES:
        put(row_parts_ptr, POSITIVE_PEAK, slot, n_row_slots, row_pitch, place_R, positive_peak_R, inside_R)
