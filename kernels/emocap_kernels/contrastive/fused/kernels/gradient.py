r"""Contains the kernel of the gradient of the scores. It computes each tile of scores again, from the embeddings.

Let \(S_{ij}\) be the score of image i and text j, with the embeddings \(v_i\) and \(u_j\), and B the number of samples
in the global batch. With the exponentials \(E_{ij}\) of the module `statistics`, the positives \(P_i\) of image i and
the positives \(Q_j\) of text j, the matrix

\[ G_{ij} = \frac{E_{ij}}{\sum_k E_{ik}} + \frac{E_{ij}}{\sum_k E_{kj}}
          - \frac{[j \in P_i]}{|P_i|} - \frac{[i \in Q_j]}{|Q_j|} \]

is 2B times the gradient of the loss with respect to \(S_{ij}\). It does not contain the scale as a factor, and every
entry lies in [-2, 2]. Therefore it can be stored in half precision, and torch multiplies it with the embeddings. The
gradient of the scale, \(\sum G_{ij} \langle v_i, u_j \rangle\), would be too inaccurate if it were computed from the
rounded G, so it is summed here in float32. In `mil_nce` the last two terms are softmax probabilities like the first two
terms, but with sums over the positives alone.

Positives are subtracted in float32, before G is rounded. If probabilities and positives were rounded separately, the
gradient of a pair with a loss of 0.002 would be wrong by a third (decision 10).
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.contrastive.fused.kernels.tiles import RULE_NONE, mined_pairs
from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED, cosines

# Axes:  R rows of a tile   C columns of a tile   D embedding   F fields   T programs   N anchors of one side
#        b* size of a tile along *   n* how many there are

# The gradient weights of an anchor. A candidate gets WEIGHT times 2^(score - PEAK), where PEAK is the common shift if
# that fits. From a positive, infonce subtracts POSITIVE_WEIGHT, and mil_nce subtracts POSITIVE_WEIGHT times
# 2^(score - POSITIVE_PEAK).
WEIGHT = tl.constexpr(0)
PEAK = tl.constexpr(1)
POSITIVE_WEIGHT = tl.constexpr(2)
POSITIVE_PEAK = tl.constexpr(3)
N_FIELDS = 4


@triton.jit
def load_weight(weights_ptr_FN, field: tl.constexpr, pitch, index_N, inside_N):
    """Returns one field of the gradient weights of the anchors `index_N`, and 0 where `inside_N` is not set.

    `Base2Stats.gradient_weights` computes these weights. The gradient of a score is computed from them and the score.
    """
    return tl.load(weights_ptr_FN + field * pitch + index_N, mask=inside_N, other=0.0)


@triton.jit
def weighted_exp2(score_RC, peak, weight, part_RC):
    """Returns `weight` times 2^(score - peak) where `part_RC` is set, else 0."""
    return tl.exp2(tl.where(part_RC, score_RC - peak, float("-inf"))) * weight


@triton.jit(
    do_not_specialize=NOT_SPECIALIZED, do_not_specialize_on_alignment=["row_groups_ptr_R", "column_groups_ptr_C"]
)
def gradient_kernel(
    image_desc_RD,
    text_desc_CD,
    gradient_desc_RC,
    slope_ptr,
    shift_ptr,
    running_max_ptr,
    row_groups_ptr_R,
    column_groups_ptr_C,
    mask_desc_RC,
    row_weights_ptr_FR,
    column_weights_ptr_FC,
    scale_parts_ptr_T,
    threshold,
    top,
    bottom,
    left,
    right,
    strip,
    nD,
    row_pitch,
    column_pitch,
    storage_scale,
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
    """Computes the chunk [top, bottom) x [left, right) of G, and its part of the gradient of the scale.

    G is 2B times the gradient of the loss with respect to the scores. Program (i, j) takes the i-th tile of rows and
    the j-th strip of `strip` columns, and goes over the strip tile by tile. There are two variants of the kernel, and a
    value on the device (`running_max_ptr`) selects one; the other variant returns immediately.

    Reads:
        image_desc_RD, text_desc_CD: Embeddings.
        slope_ptr, shift_ptr: A score is slope times a cosine, and its exponential is 2^(score - shift).
        row_groups_ptr_R, column_groups_ptr_C: The group of each row and column. Pairs of the same group are positives
            without mining: image and text of one sample, or of samples with equal ids.
        row_weights_ptr_FR, column_weights_ptr_FC: The results of `Base2Stats.gradient_weights` for rows and columns,
            with the lengths `row_pitch` and `column_pitch` of a field.
        mask_desc_RC: Mined pairs of the chunk, if RULE is RULE_MASK.
    Writes:
        gradient_desc_RC: `storage_scale` times G, in the type of the embeddings, tile by tile.
        scale_parts_ptr_T: float32. Each program writes, at its end, the sum of `G * cosine` over its pairs.
    """
    if (tl.load(running_max_ptr) != 0) != RUNNING_MAX:
        return
    row = top + tl.program_id(0) * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    # Beyond the end a row has the group -1 and a column the group -2, so they form no known pair. Entries of G there
    # need only be finite: the cosines are 0, so the gradient of the scale does not change, and the host cuts these
    # columns off.
    group_R = tl.load(row_groups_ptr_R + row_R, mask=inside_R, other=-1)
    slope = tl.load(slope_ptr)
    shift = tl.load(shift_ptr)
    weight_R = load_weight(row_weights_ptr_FR, WEIGHT, row_pitch, row_R, inside_R)
    peak_R = load_weight(row_weights_ptr_FR, PEAK, row_pitch, row_R, inside_R)
    positive_R = load_weight(row_weights_ptr_FR, POSITIVE_WEIGHT, row_pitch, row_R, inside_R)
    positive_peak_R = load_weight(row_weights_ptr_FR, POSITIVE_PEAK, row_pitch, row_R, inside_R)
    by_scale_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        # 1. The scores of the tile, with the bits that they had in forward.
        cosine_RC = cosines(image_desc_RD, text_desc_CD, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        group_C = tl.load(column_groups_ptr_C + column_C, mask=inside_C, other=-2)
        positive_C = load_weight(column_weights_ptr_FC, POSITIVE_WEIGHT, column_pitch, column_C, inside_C)
        score_RC = cosine_RC * slope

        # 2. Which pairs are candidates, and which are positives, as in forward.
        if RULE != RULE_NONE:
            by_row_RC, by_column_RC = mined_pairs(cosine_RC, threshold, mask_desc_RC, row - top, column - left, RULE)
            known_RC = group_R[:, None] == group_C[None, :]
            row_candidate_RC = known_RC | ~by_row_RC
            column_candidate_RC = known_RC | ~by_column_RC
            if ATTRACT:
                by_row_RC |= known_RC
                by_column_RC |= known_RC
            else:
                by_row_RC = known_RC
                by_column_RC = known_RC

        # 3. The weighted exponentials of both directions. With the common shift they are one exponential times a sum of
        # weights, from which `mil_nce` also subtracts the weights of its positives.
        weight_C = load_weight(column_weights_ptr_FC, WEIGHT, column_pitch, column_C, inside_C)
        if RULE == RULE_NONE and SUM_POSITIVES:
            by_row_RC = group_R[:, None] == group_C[None, :]
            by_column_RC = by_row_RC
        if RUNNING_MAX:
            peak_C = load_weight(column_weights_ptr_FC, PEAK, column_pitch, column_C, inside_C)
            # Beyond the end the score is 0, which may lie far above the peaks of real anchors.
            inside_RC = inside_R[:, None] & inside_C[None, :]
            row_part_RC = inside_RC
            column_part_RC = inside_RC
            if RULE != RULE_NONE and not ATTRACT:
                row_part_RC = inside_RC & row_candidate_RC
                column_part_RC = inside_RC & column_candidate_RC
            gradient_RC = weighted_exp2(score_RC, peak_R[:, None], weight_R[:, None], row_part_RC)
            gradient_RC += weighted_exp2(score_RC, peak_C[None, :], weight_C[None, :], column_part_RC)
            if SUM_POSITIVES:
                positive_peak_C = load_weight(column_weights_ptr_FC, POSITIVE_PEAK, column_pitch, column_C, inside_C)
                row_part_RC = inside_RC & by_row_RC
                column_part_RC = inside_RC & by_column_RC
                gradient_RC -= weighted_exp2(score_RC, positive_peak_R[:, None], positive_R[:, None], row_part_RC)
                gradient_RC -= weighted_exp2(score_RC, positive_peak_C[None, :], positive_C[None, :], column_part_RC)
        else:
            weight_RC = weight_R[:, None] + weight_C[None, :]
            if RULE != RULE_NONE and not ATTRACT:
                weight_RC = tl.where(row_candidate_RC, weight_R[:, None], 0.0)
                weight_RC += tl.where(column_candidate_RC, weight_C[None, :], 0.0)
            if SUM_POSITIVES:
                weight_RC -= tl.where(by_row_RC, positive_R[:, None], 0.0)
                weight_RC -= tl.where(by_column_RC, positive_C[None, :], 0.0)
            gradient_RC = tl.exp2(score_RC - shift) * weight_RC

        # 4. `infonce` subtracts a constant at each positive.
        if not SUM_POSITIVES:
            if RULE != RULE_NONE:
                gradient_RC -= tl.where(by_row_RC, positive_R[:, None], 0.0)
                gradient_RC -= tl.where(by_column_RC, positive_C[None, :], 0.0)
            else:
                # This runs in every tile: a branch for tiles with a known pair would hold two tiles in registers.
                known_RC = group_R[:, None] == group_C[None, :]
                gradient_RC -= tl.where(known_RC, positive_R[:, None] + positive_C[None, :], 0.0)
        # 5. The gradient of the scale is summed before the rounding of the chunk.
        by_scale_R += tl.sum(gradient_RC * cosine_RC, 1)
        gradient_desc_RC.store([row - top, column - left], (gradient_RC * storage_scale).to(gradient_desc_RC.dtype))
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(scale_parts_ptr_T + program, tl.sum(by_scale_R, 0))
