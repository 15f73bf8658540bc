r"""Contains the kernel that sums over the candidates and the positives of every anchor, with one exponential per score.

Let \(z_{ij}\) be the score of image i and text j in base 2, which is slope times their cosine (`tiles.py`), and B the
number of samples in the global batch. For unit vectors \(|z_{ij}| \le \mathrm{slope}\), so the constant

\[ h = \max(0, \lceil 1.02\,\mathrm{slope} + \log_2 B \rceil - 126) \]

keeps every sum of \(E_{ij} = 2^{z_{ij} - h}\) below \(2^{127}\). Row sums and column sums are then plain sums of the
same \(E_{ij}\): there is no running maximum and no second exponential, and tiles and ranks are combined by addition.

Small terms of a sum may underflow. If the sum exceeds \(B\,2^{-102}\), the error by underflow is smaller than the
rounding error. An anchor's own pair is always a candidate, so it is enough that \(2^{z_{ii} - h}\) exceeds that bound
for all i. The device tests this, and the norms of the inputs, before the first tile (`score_bounds.py`). The test fails
only if an own pair has a cosine below about -0.3 at scale 100, or if vectors do not have unit length. In these cases
the variant of the kernel with RUNNING_MAX computes the statistics. It keeps each sum relative to a running maximum of
its own. Both variants are always started. Each first reads the result of the test on the device, and the variant that
is not needed returns at once. So the host does not wait for the result.

Each program computes `bR` rows and goes over a strip of columns. Its row statistics stay in registers. The column
statistics of a tile are written to a slot that no other tile of these columns uses. The slots are merged afterwards in
a fixed order, without atomics, so two runs are equal to the bit.

The order of the steps and the two variants were chosen because they need few registers. A single kernel with the rare
cases as branches spilled 2.7 KB of registers for each thread (docs/log.md, 2026-11-23).
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.contrastive.fused.kernels.tiles import (
    RULE_NONE,
    add_to_log_sum,
    add_two,
    contains_known,
    known_hits,
    mined_pairs,
)
from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED, cosines, store_part

# Axes:  R rows of a tile   C columns of a tile   D embedding   F statistics   T slots
#        b* size of a tile along *   n* how many there are

# The statistics of an anchor. In infonce, POSITIVE is the sum of the scores of the positives. In mil_nce it is the sum
# of 2^(score - POSITIVE_PEAK) over them.
# HIT is 1 if the best-scoring candidate is a known positive. COUNT stays 0 without a rule, because the host knows the
# sizes of the groups.
PEAK = tl.constexpr(0)
SUM_EXP2 = tl.constexpr(1)
BEST = tl.constexpr(2)
HIT = tl.constexpr(3)
POSITIVE = tl.constexpr(4)
COUNT = tl.constexpr(5)
POSITIVE_PEAK = tl.constexpr(6)
N_FIELDS = 7


@triton.jit(
    do_not_specialize=NOT_SPECIALIZED, do_not_specialize_on_alignment=["row_groups_ptr_R", "column_groups_ptr_C"]
)
def statistics_kernel(
    image_desc_RD,
    text_desc_CD,
    slope_ptr,
    shift_ptr,
    running_max_ptr,
    row_groups_ptr_R,
    column_groups_ptr_C,
    mask_desc_RC,
    row_parts_ptr_FTR,
    column_parts_ptr_FTC,
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
    RUNNING_MAX: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Computes the softmax statistics of the local rows [top, bottom) and of the columns [left, right) of a block.

    Program (i, j) takes the i-th tile of rows and the j-th strip of `strip` columns, and goes over the strip tile by
    tile. It returns at once if the device chose the other variant (`running_max_ptr`).

    Reads:
        image_desc_RD, text_desc_CD: Embeddings.
        row_groups_ptr_R, column_groups_ptr_C: The group of each row and column. Pairs of the same group are positives
            without mining: image and text of one sample, or of samples with equal ids.
        mask_desc_RC: Mined pairs of the chunk, if RULE is RULE_MASK.
        slope_ptr, shift_ptr: A score is slope times a cosine, and its exponential is 2^(score - shift).
    Writes:
        row_parts_ptr_FTR: [fields, n_row_slots, row_pitch]. The program writes to slot `row_slot + j` at its end.
        column_parts_ptr_FTC: [fields, n_column_slots, column_pitch]. The program writes to slot i after each tile.

    `first` is the column of the text that belongs to the image of local row 0, counted from the first column of the
    block. It may lie outside of the block.
    """
    if (tl.load(running_max_ptr) != 0) != RUNNING_MAX:
        return
    tile = tl.program_id(0)
    row = top + tile * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    own_R = first + row_R
    # Beyond the end a row has the group -1 and a column the group -2, so they form no known pair.
    group_R = tl.load(row_groups_ptr_R + row_R, mask=inside_R, other=-1)
    slope = tl.load(slope_ptr)
    shift = tl.load(shift_ptr)
    peak_R = tl.full([bR], float("-inf"), tl.float32)
    best_R = tl.full([bR], float("-inf"), tl.float32)
    positive_peak_R = tl.full([bR], float("-inf"), tl.float32)
    sum_exp2_R = tl.zeros([bR], tl.float32)
    hit_R = tl.zeros([bR], tl.float32)
    positive_R = tl.zeros([bR], tl.float32)
    count_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        # 1. The scores of the tile; -inf beyond the end.
        cosine_RC = cosines(image_desc_RD, text_desc_CD, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        group_C = tl.load(column_groups_ptr_C + column_C, mask=inside_C, other=-2)
        score_RC = cosine_RC * slope
        if (row + bR > bottom) | (column + bC > right):
            score_RC = tl.where(inside_R[:, None] & inside_C[None, :], score_RC, float("-inf"))

        # 2. Hits, known positives without a rule, and best scores. After the exponentials they would spill more
        # registers.
        any_known = contains_known(group_R, group_C, first + row, column, bR, bC, HAS_IDS)
        hit_tile_R, hit_C = known_hits(score_RC, group_R, group_C, own_R, column_C, any_known, bR, bC)
        positive_C = tl.zeros([bC], tl.float32)
        count_C = tl.zeros([bC], tl.float32)
        positive_peak_C = tl.full([bC], float("-inf"), tl.float32)
        if RULE == RULE_NONE:
            if any_known:
                known_RC = group_R[:, None] == group_C[None, :]
                if SUM_POSITIVES:
                    known_score_RC = tl.where(known_RC, score_RC, float("-inf"))
                    positive_peak_R, positive_R = add_to_log_sum(positive_peak_R, positive_R, known_score_RC, 1)
                    positive_peak_C, positive_C = add_to_log_sum(positive_peak_C, positive_C, known_score_RC, 0)
                else:
                    known_score_RC = tl.where(known_RC, score_RC, 0.0)
                    positive_R += tl.sum(known_score_RC, 1)
                    positive_C = tl.sum(known_score_RC, 0)
        best_tile_R = tl.max(score_RC, 1)
        best_C = tl.max(score_RC, 0)
        # An equal score in a later tile does not replace the best one, because its columns have higher indices.
        hit_R = tl.where(best_tile_R > best_R, hit_tile_R, hit_R)
        best_R = tl.maximum(best_R, best_tile_R)

        # 3. Mined pairs become positives, or they are excluded by -inf.
        row_score_RC = score_RC
        column_score_RC = score_RC
        if RULE != RULE_NONE:
            by_row_RC, by_column_RC = mined_pairs(cosine_RC, threshold, mask_desc_RC, row - top, column - left, RULE)
            known_RC = group_R[:, None] == group_C[None, :]
            if ATTRACT:
                # Beyond the end cosines are 0, which a threshold below 0 would accept.
                inside_RC = inside_R[:, None] & inside_C[None, :]
                by_row_RC = (by_row_RC | known_RC) & inside_RC
                by_column_RC = (by_column_RC | known_RC) & inside_RC
            else:
                row_score_RC = tl.where(by_row_RC & ~known_RC, float("-inf"), score_RC)
                column_score_RC = tl.where(by_column_RC & ~known_RC, float("-inf"), score_RC)
                by_row_RC = known_RC
                by_column_RC = known_RC
            if SUM_POSITIVES:
                positive_peak_R, positive_R = add_to_log_sum(
                    positive_peak_R, positive_R, tl.where(by_row_RC, score_RC, float("-inf")), 1
                )
                positive_peak_C, positive_C = add_to_log_sum(
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

        # 4. Exponentials and their sums. With the common shift, rows and columns share them if no pair is excluded.
        if RUNNING_MAX:
            peak_R, sum_exp2_R = add_to_log_sum(peak_R, sum_exp2_R, row_score_RC, 1)
            peak_C, sum_exp2_C = add_to_log_sum(
                tl.full([bC], float("-inf"), tl.float32), tl.zeros([bC], tl.float32), column_score_RC, 0
            )
        else:
            sum_exp2_R += tl.sum(tl.exp2(row_score_RC - shift), 1)
            sum_exp2_C = tl.sum(tl.exp2(column_score_RC - shift), 0)
            peak_R = tl.full([bR], 0.0, tl.float32) + shift
            peak_C = tl.full([bC], 0.0, tl.float32) + shift

        # 5. No other program writes to slot `tile` of these columns, so nothing is added in memory.
        store_part(column_parts_ptr_FTC, PEAK, tile, n_column_slots, column_pitch, column_C, peak_C, inside_C)
        store_part(column_parts_ptr_FTC, SUM_EXP2, tile, n_column_slots, column_pitch, column_C, sum_exp2_C, inside_C)
        store_part(column_parts_ptr_FTC, BEST, tile, n_column_slots, column_pitch, column_C, best_C, inside_C)
        store_part(column_parts_ptr_FTC, HIT, tile, n_column_slots, column_pitch, column_C, hit_C, inside_C)
        store_part(column_parts_ptr_FTC, POSITIVE, tile, n_column_slots, column_pitch, column_C, positive_C, inside_C)
        store_part(column_parts_ptr_FTC, COUNT, tile, n_column_slots, column_pitch, column_C, count_C, inside_C)
        if SUM_POSITIVES:
            store_part(
                column_parts_ptr_FTC,
                POSITIVE_PEAK,
                tile,
                n_column_slots,
                column_pitch,
                column_C,
                positive_peak_C,
                inside_C,
            )

    slot = row_slot + tl.program_id(1)
    place_R = row_R - top
    store_part(row_parts_ptr_FTR, PEAK, slot, n_row_slots, row_pitch, place_R, peak_R, inside_R)
    store_part(row_parts_ptr_FTR, SUM_EXP2, slot, n_row_slots, row_pitch, place_R, sum_exp2_R, inside_R)
    store_part(row_parts_ptr_FTR, BEST, slot, n_row_slots, row_pitch, place_R, best_R, inside_R)
    store_part(row_parts_ptr_FTR, HIT, slot, n_row_slots, row_pitch, place_R, hit_R, inside_R)
    store_part(row_parts_ptr_FTR, POSITIVE, slot, n_row_slots, row_pitch, place_R, positive_R, inside_R)
    store_part(row_parts_ptr_FTR, COUNT, slot, n_row_slots, row_pitch, place_R, count_R, inside_R)
    if SUM_POSITIVES:
        store_part(row_parts_ptr_FTR, POSITIVE_PEAK, slot, n_row_slots, row_pitch, place_R, positive_peak_R, inside_R)
