"""Contains the kernel that finds the most similar candidates of every anchor. It keeps their list in registers."""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED, cosines

# Axes:  R anchors of a tile   C candidates of a tile   K most similar candidates   D embedding   T strips
#        b* size of a tile along *   n* how many there are


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def nearest_kernel(
    left_desc_RD,
    right_desc_CD,
    second_left_desc_RD,
    second_right_desc_CD,
    values_ptr_TRK,
    indices_ptr_TRK,
    threshold,
    first,
    bottom,
    right,
    strip,
    nD,
    second_nD,
    TOP_K: tl.constexpr,
    bK: tl.constexpr,
    TWO_SIMILARITIES: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Finds the most similar candidates of `bR` anchors in one strip of candidates.

    For each anchor, the candidate that belongs to the same sample (or is the same sentence) is left out.

    Program (i, j) takes anchors [i * bR, (i + 1) * bR) and candidates [j * strip, (j + 1) * strip). It keeps one sorted
    list for each anchor in registers. It computes one tile of similarities after the other, and inserts each candidate
    that is among the TOP_K best so far. Candidates below `threshold` are left out. With TWO_SIMILARITIES, the smaller
    of two similarities counts. At the end, the program writes its lists to entry j of the first axis of the outputs.

    Reads:
        left_desc_RD, right_desc_CD: Vectors of anchors and candidates.
        second_left_desc_RD, second_right_desc_CD: The same for the second similarity.
    Writes:
        values_ptr_TRK: float32 [strips, bottom, bK], similarities in descending order; of equal ones the lower index
            comes first. Only the first TOP_K of the bK entries are written. If fewer candidates reach the threshold,
            the rest of these entries are -inf.
        indices_ptr_TRK: int32 [strips, bottom, bK], the indices of the candidates; -1 where there is none.

    `first` is the index of the candidate that is left out for anchor 0; the one for anchor r is `first + r`. `bottom`
    and `right` are the numbers of anchors and of candidates.
    """
    row = tl.program_id(0) * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    slot_K = tl.arange(0, bK)
    value_RK = tl.full([bR, bK], float("-inf"), tl.float32)
    index_RK = tl.full([bR, bK], -1, tl.int32)
    begin = tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        # 1. The similarities of a tile; -inf for what is not a candidate. So far each list holds the best candidates of
        # the earlier tiles of the strip.
        similarity_RC = cosines(left_desc_RD, right_desc_CD, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        if TWO_SIMILARITIES:
            second_RC = cosines(
                second_left_desc_RD, second_right_desc_CD, row, column, second_nD, bR, bC, bD, PRECISION, WIDEN
            )
            similarity_RC = tl.minimum(similarity_RC, second_RC)
        column_C = column + tl.arange(0, bC)
        candidate_RC = (first + row_R[:, None] != column_C[None, :]) & (column_C < right)[None, :]
        similarity_RC = tl.where(candidate_RC & (similarity_RC >= threshold), similarity_RC, float("-inf"))
        # 2. While any row has a candidate above the last of its list, each such row inserts its best candidate. If it
        # is only as similar as the last, it is not inserted: the last has a lower index.
        last_R = tl.min(tl.where(slot_K[None, :] == TOP_K - 1, value_RK, float("inf")), 1)
        best_R, place_R = tl.max(similarity_RC, 1, return_indices=True)
        while tl.max((best_R > last_R).to(tl.int32), 0) > 0:
            better_R = best_R > last_R
            # The candidate is inserted after all that are as similar: these were inserted earlier, so their index is
            # lower.
            ahead_RK = value_RK >= best_R[:, None]
            rank_R = tl.sum(ahead_RK.to(tl.int32), 1)
            # Entries from place `rank_R` on move one place back, and the last one drops out.
            before_RK = tl.broadcast_to(tl.maximum(slot_K - 1, 0)[None, :], [bR, bK])
            shifted_value_RK = tl.gather(value_RK, before_RK, 1)
            shifted_index_RK = tl.gather(index_RK, before_RK, 1)
            here_RK = slot_K[None, :] == rank_R[:, None]
            new_value_RK = tl.where(here_RK, best_R[:, None], tl.where(ahead_RK, value_RK, shifted_value_RK))
            new_index_RK = tl.where(here_RK, column + place_R[:, None], tl.where(ahead_RK, index_RK, shifted_index_RK))
            value_RK = tl.where(better_R[:, None], new_value_RK, value_RK)
            index_RK = tl.where(better_R[:, None], new_index_RK, index_RK)
            # The inserted candidate is removed from the tile, and the next round finds the next best one.
            taken_RC = better_R[:, None] & (tl.arange(0, bC)[None, :] == place_R[:, None])
            similarity_RC = tl.where(taken_RC, float("-inf"), similarity_RC)
            last_R = tl.min(tl.where(slot_K[None, :] == TOP_K - 1, value_RK, float("inf")), 1)
            best_R, place_R = tl.max(similarity_RC, 1, return_indices=True)
    # 3. The list of this strip is written to a slot of its own.
    place_RK = (tl.program_id(1).to(tl.int64) * bottom + row_R[:, None]) * bK + slot_K[None, :]
    kept_RK = inside_R[:, None] & (slot_K < TOP_K)[None, :]
    tl.store(values_ptr_TRK + place_RK, value_RK, mask=kept_RK)
    tl.store(indices_ptr_TRK + place_RK, index_RK, mask=kept_RK)
