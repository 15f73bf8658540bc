r"""The gradient of the scores, a tile made again from the embeddings and the sums of its anchors.

\[ G_{ij} = \frac{E_{ij}}{\sum_k E_{ik}} + \frac{E_{ij}}{\sum_k E_{kj}}
          - \frac{[j \in P_i]}{|P_i|} - \frac{[i \in Q_j]}{|Q_j|} \]

is 2B times the gradient of the loss in \(S_{ij}\), with no power of the scale in it and every entry in [-2, 2]: it fits
a half-precision chunk, whose products with the embeddings are matrix products for the library. What a half would round
away is summed here in float32: \(\sum G_{ij} \langle v_i, u_j \rangle\), the gradient of the scale. In `mil_nce` the
last two terms are shares of a sum over positives, of the same form as the first two.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.contrastive.fused.kernels.tiles import RULE_NONE, mined_pairs
from emocap_kernels.fused.kernels.tiles import VARYING, cosines

# Lines of the shares of an anchor: a candidate gets WEIGHT times 2^(score - PEAK) of it, and PEAK is the common shift
# where that fits. Then the same for a positive; in infonce a positive gets POSITIVE_WEIGHT.
WEIGHT = tl.constexpr(0)
PEAK = tl.constexpr(1)
POSITIVE_WEIGHT = tl.constexpr(2)
POSITIVE_PEAK = tl.constexpr(3)
LINES = 4


@triton.jit
def share(shares_ptr, line: tl.constexpr, pitch, place, inside):
    """0, and so of no weight, beyond the end."""
    return tl.load(shares_ptr + line * pitch + place, mask=inside, other=0.0)


@triton.jit
def weighted(score_RC, peak, weight, part_RC):
    """`weight` times 2^(score - peak) where a pair takes part, else 0."""
    return tl.exp2(tl.where(part_RC, score_RC - peak, float("-inf"))) * weight


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["row_groups_ptr", "column_groups_ptr"])
def gradient_kernel(
    image_desc,
    text_desc,
    gradient_desc,
    slope_ptr,
    shift_ptr,
    steep_ptr,
    row_groups_ptr,
    column_groups_ptr,
    marks_desc,
    row_shares_ptr,
    column_shares_ptr,
    scale_parts_ptr,
    threshold,
    top,
    bottom,
    left,
    right,
    strip,
    nD,
    row_pitch,
    column_pitch,
    gain,
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
    """The chunk [top, bottom) x [left, right) of `gain` times G, and each program's part of the scale's gradient."""
    if (tl.load(steep_ptr) != 0) != STEEP:
        return
    row = top + tl.program_id(0) * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    group_R = tl.load(row_groups_ptr + row_R, mask=inside_R, other=-1)
    slope = tl.load(slope_ptr)
    shift = tl.load(shift_ptr)
    weight_R = share(row_shares_ptr, WEIGHT, row_pitch, row_R, inside_R)
    peak_R = share(row_shares_ptr, PEAK, row_pitch, row_R, inside_R)
    positive_R = share(row_shares_ptr, POSITIVE_WEIGHT, row_pitch, row_R, inside_R)
    positive_peak_R = share(row_shares_ptr, POSITIVE_PEAK, row_pitch, row_R, inside_R)
    by_scale_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        cosine_RC = cosines(image_desc, text_desc, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        group_C = tl.load(column_groups_ptr + column_C, mask=inside_C, other=-2)
        positive_C = share(column_shares_ptr, POSITIVE_WEIGHT, column_pitch, column_C, inside_C)
        score_RC = cosine_RC * slope

        if RULE != RULE_NONE:
            by_row_RC, by_column_RC = mined_pairs(cosine_RC, threshold, marks_desc, row - top, column - left, RULE)
            known_RC = group_R[:, None] == group_C[None, :]
            row_candidate_RC = known_RC | ~by_row_RC
            column_candidate_RC = known_RC | ~by_column_RC
            if ATTRACT:
                by_row_RC |= known_RC
                by_column_RC |= known_RC
            else:
                by_row_RC = known_RC
                by_column_RC = known_RC

        weight_C = share(column_shares_ptr, WEIGHT, column_pitch, column_C, inside_C)
        if RULE == RULE_NONE and SUM_POSITIVES:
            by_row_RC = group_R[:, None] == group_C[None, :]
            by_column_RC = by_row_RC
        if STEEP:
            peak_C = share(column_shares_ptr, PEAK, column_pitch, column_C, inside_C)
            # Beyond the end a score of 0 may lie far above the peaks of those inside.
            inside_RC = inside_R[:, None] & inside_C[None, :]
            row_part_RC = inside_RC
            column_part_RC = inside_RC
            if RULE != RULE_NONE and not ATTRACT:
                row_part_RC = inside_RC & row_candidate_RC
                column_part_RC = inside_RC & column_candidate_RC
            gradient_RC = weighted(score_RC, peak_R[:, None], weight_R[:, None], row_part_RC)
            gradient_RC += weighted(score_RC, peak_C[None, :], weight_C[None, :], column_part_RC)
            if SUM_POSITIVES:
                positive_peak_C = share(column_shares_ptr, POSITIVE_PEAK, column_pitch, column_C, inside_C)
                row_part_RC = inside_RC & by_row_RC
                column_part_RC = inside_RC & by_column_RC
                gradient_RC -= weighted(score_RC, positive_peak_R[:, None], positive_R[:, None], row_part_RC)
                gradient_RC -= weighted(score_RC, positive_peak_C[None, :], positive_C[None, :], column_part_RC)
        else:
            weight_RC = weight_R[:, None] + weight_C[None, :]
            if RULE != RULE_NONE and not ATTRACT:
                weight_RC = tl.where(row_candidate_RC, weight_R[:, None], 0.0)
                weight_RC += tl.where(column_candidate_RC, weight_C[None, :], 0.0)
            if SUM_POSITIVES:
                weight_RC -= tl.where(by_row_RC, positive_R[:, None], 0.0)
                weight_RC -= tl.where(by_column_RC, positive_C[None, :], 0.0)
            gradient_RC = tl.exp2(score_RC - shift) * weight_RC

        if not SUM_POSITIVES:
            if RULE != RULE_NONE:
                gradient_RC -= tl.where(by_row_RC, positive_R[:, None], 0.0)
                gradient_RC -= tl.where(by_column_RC, positive_C[None, :], 0.0)
            else:
                # In every tile: a branch for those with a known pair would hold two tiles in registers.
                known_RC = group_R[:, None] == group_C[None, :]
                gradient_RC -= tl.where(known_RC, positive_R[:, None] + positive_C[None, :], 0.0)
        by_scale_R += tl.sum(gradient_RC * cosine_RC, 1)
        gradient_desc.store([row - top, column - left], (gradient_RC * gain).to(gradient_desc.dtype))
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(scale_parts_ptr + program, tl.sum(by_scale_R, 0))
