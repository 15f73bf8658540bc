r"""Contains the kernels of `sigmoid` and `soft`. They compute losses and gradient in one pass over the scores.

For `sigmoid`, let \(t = \mathrm{scale} \langle v_i, u_j \rangle + \mathrm{bias}\) be the score of image i and text j.
In each direction the pair adds \(\log(1 + e^t) - [\text{positive}]\,t\) to the loss, and the gradient of this with
respect to t is \(\sigma(t) - [\text{positive}]\). One exponential, \(\epsilon = e^{-|t|}\) (`e` in the code), gives
both: \(\log(1 + e^t) = \max(t, 0) + \log(1 + \epsilon)\), and \(\sigma(t)\) is \(1 / (1 + \epsilon)\) for
\(t \ge 0\), otherwise \(\epsilon / (1 + \epsilon)\). For almost all pairs \(\epsilon\) is tiny, and
\(1 + \epsilon\) in float32 would lose most digits of \(\epsilon\). Therefore \(\log(1 + \epsilon)\) is computed by a
polynomial in \(\epsilon\).

For `soft`, let \(T\) and \(p\) be the softmax probabilities of a pair by teacher and by student. In each direction the
pair adds \(T (\log T - \log p)\) to the loss, and the gradient of the loss with respect to the score is \(p - T\).
Earlier passes of the statistics kernel compute the normalisers of both softmaxes.
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.contrastive.fused.kernels.tiles import (
    LN_2,
    LOG2_E,
    RULE_NONE,
    contains_known,
    known_hits,
    mined_pairs,
)
from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED, cosines, store_part

# Axes:  R rows of a tile   C columns of a tile   D embedding   F statistics   T slots   N anchors of one side
#        b* size of a tile along *   n* how many there are

# The statistics of rows. Columns have only the last two, as their fields 0 and 1.
# HIT is 1 if the best-scoring candidate is a known positive.
IMAGE_LOSS = tl.constexpr(0)
TEXT_LOSS = tl.constexpr(1)
IMAGE_COUNT = tl.constexpr(2)
TEXT_COUNT = tl.constexpr(3)
BY_SCALE = tl.constexpr(4)
BY_BIAS = tl.constexpr(5)
BEST = tl.constexpr(6)
HIT = tl.constexpr(7)
N_ROW_FIELDS = 8
COLUMN_BEST = tl.constexpr(0)
COLUMN_HIT = tl.constexpr(1)
N_COLUMN_FIELDS = 2

# The softmax normalisers of `soft`, in base 2: a peak, and the logarithm of the sum relative to it. A single number
# would round away the distance of a score from the peak.
STUDENT_PEAK = tl.constexpr(0)
STUDENT_LOG = tl.constexpr(1)
TEACHER_PEAK = tl.constexpr(2)
TEACHER_LOG = tl.constexpr(3)


@triton.jit
def load_log_sum(log_sums_ptr_FN, field: tl.constexpr, pitch, index_N, inside_N):
    """Returns one field of the softmax normalisers of the anchors `index_N`, and 0 where `inside_N` is not set.

    For student and for teacher, the fields are a peak, and log2 of the sum of 2^(score - peak).
    """
    return tl.load(log_sums_ptr_FN + field * pitch + index_N, mask=inside_N, other=0.0)


@triton.jit
def log1p(e):
    """Returns the natural logarithm of 1 + e for e in [0, 1], as e times a polynomial in e.

    The relative error is less than 2^-22. Because e is a factor of the result, this also holds where e is tiny.
    `tl.fma` requests a fused multiply-add explicitly, because the options of the kernels (`TileConfig.options`) forbid
    the compiler to fuse products into sums by itself.
    """
    p = tl.fma(e, 0.005232623778283596, -0.029504956677556038)
    p = tl.fma(p, e, 0.07822549343109131)
    p = tl.fma(p, e, -0.1366320699453354)
    p = tl.fma(p, e, 0.1910598874092102)
    p = tl.fma(p, e, -0.2484297752380371)
    p = tl.fma(p, e, 0.3331909477710724)
    p = tl.fma(p, e, -0.4999949336051941)
    p = tl.fma(p, e, 0.9999999403953552)
    return p * e


@triton.jit(
    do_not_specialize=NOT_SPECIALIZED, do_not_specialize_on_alignment=["row_groups_ptr_R", "column_groups_ptr_C"]
)
def sigmoid_kernel(
    image_desc_RD,
    text_desc_CD,
    gradient_desc_RC,
    scale_ptr,
    bias_ptr,
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
    storage_scale,
    WITH_GRADIENT: tl.constexpr,
    HAS_IDS: tl.constexpr,
    RULE: tl.constexpr,
    ATTRACT: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Computes losses, numbers of positives, and best scores of the rows [top, bottom) and columns [left, right).

    If WITH_GRADIENT is set, it also computes the gradient of the losses.

    Program (i, j) takes the i-th tile of rows and the j-th strip of `strip` columns, and goes over the strip tile by
    tile.

    Reads:
        image_desc_RD, text_desc_CD: Embeddings.
        row_groups_ptr_R, column_groups_ptr_C: The group of each row and column. Pairs of the same group are positives
            without mining: image and text of one sample, or of samples with equal ids.
        mask_desc_RC: Mined pairs of the chunk, if RULE is RULE_MASK.
    Writes:
        column_parts_ptr_FTC: [fields, n_column_slots, column_pitch]. The program writes to slot i after each tile.
        gradient_desc_RC: Only if WITH_GRADIENT is set: `storage_scale` times the gradient of the summed losses of both
            directions with respect to the scores, tile by tile.
        row_parts_ptr_FTR: [fields, n_row_slots, row_pitch]. The program writes to slot `row_slot + j` at its end.

    Without a mining rule (RULE_NONE), the losses of both directions are equal, and the field TEXT_LOSS stays 0. With a
    rule, ATTRACT says whether mined pairs become positives; if not, they are excluded from the loss. The kernel counts
    positives only if there is a rule and ATTRACT is set. Otherwise only pairs of the same group are positives. The host
    knows their numbers from the sizes of the groups, so the fields IMAGE_COUNT and TEXT_COUNT stay 0.

    `first` is the column of the text that belongs to the image of local row 0, counted from the first column of the
    block.
    """
    tile = tl.program_id(0)
    row = top + tile * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    own_R = first + row_R
    group_R = tl.load(row_groups_ptr_R + row_R, mask=inside_R, other=-1)
    scale = tl.load(scale_ptr)
    bias = tl.load(bias_ptr)
    image_loss_R = tl.zeros([bR], tl.float32)
    text_loss_R = tl.zeros([bR], tl.float32)
    image_count_R = tl.zeros([bR], tl.float32)
    text_count_R = tl.zeros([bR], tl.float32)
    by_scale_R = tl.zeros([bR], tl.float32)
    by_bias_R = tl.zeros([bR], tl.float32)
    best_R = tl.full([bR], float("-inf"), tl.float32)
    hit_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        # 1. The scores of the tile; beyond the end -inf, whose softplus and probability are 0.
        cosine_RC = cosines(image_desc_RD, text_desc_CD, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        group_C = tl.load(column_groups_ptr_C + column_C, mask=inside_C, other=-2)
        score_RC = cosine_RC * scale + bias
        if (row + bR > bottom) | (column + bC > right):
            score_RC = tl.where(inside_R[:, None] & inside_C[None, :], score_RC, float("-inf"))

        # 2. Hits and best scores, as in `statistics_kernel`.
        any_known = contains_known(group_R, group_C, first + row, column, bR, bC, HAS_IDS)
        hit_tile_R, hit_C = known_hits(score_RC, group_R, group_C, own_R, column_C, any_known, bR, bC)
        best_tile_R = tl.max(score_RC, 1)
        hit_R = tl.where(best_tile_R > best_R, hit_tile_R, hit_R)
        best_R = tl.maximum(best_R, best_tile_R)
        store_part(
            column_parts_ptr_FTC,
            COLUMN_BEST,
            tile,
            n_column_slots,
            column_pitch,
            column_C,
            tl.max(score_RC, 0),
            inside_C,
        )
        store_part(column_parts_ptr_FTC, COLUMN_HIT, tile, n_column_slots, column_pitch, column_C, hit_C, inside_C)

        # 3. The losses of both directions.
        e_RC = tl.exp2(-tl.abs(score_RC) * LOG2_E)
        softplus_RC = tl.maximum(score_RC, 0.0) + log1p(e_RC)
        if RULE == RULE_NONE:
            if any_known:
                known_RC = group_R[:, None] == group_C[None, :]
                image_loss_R -= tl.sum(tl.where(known_RC, score_RC, 0.0), 1)
            image_loss_R += tl.sum(softplus_RC, 1)
        else:
            mined_row_RC, mined_column_RC = mined_pairs(
                cosine_RC, threshold, mask_desc_RC, row - top, column - left, RULE
            )
            known_RC = group_R[:, None] == group_C[None, :]
            inside_RC = inside_R[:, None] & inside_C[None, :]
            if ATTRACT:
                mined_row_RC = (mined_row_RC | known_RC) & inside_RC
                mined_column_RC = (mined_column_RC | known_RC) & inside_RC
                image_loss_R += tl.sum(softplus_RC - tl.where(mined_row_RC, score_RC, 0.0), 1)
                text_loss_R += tl.sum(softplus_RC - tl.where(mined_column_RC, score_RC, 0.0), 1)
                image_count_R += tl.sum(mined_row_RC.to(tl.float32), 1)
                text_count_R += tl.sum(mined_column_RC.to(tl.float32), 1)
            else:
                mined_row_RC = mined_row_RC & ~known_RC
                mined_column_RC = mined_column_RC & ~known_RC
                positive_R = tl.sum(tl.where(known_RC, score_RC, 0.0), 1)
                image_loss_R += tl.sum(tl.where(mined_row_RC, 0.0, softplus_RC), 1) - positive_R
                text_loss_R += tl.sum(tl.where(mined_column_RC, 0.0, softplus_RC), 1) - positive_R

        # 4. The gradient is written, and the gradients of scale and bias are summed before it is rounded.
        if WITH_GRADIENT:
            # This computes 1 / (1 + e) with one instruction and a product; a division takes eight instructions.
            probability_RC = tl.where(score_RC >= 0, 1.0, e_RC) * tl.rsqrt((1.0 + e_RC) * (1.0 + e_RC))
            if RULE == RULE_NONE:
                known_RC = group_R[:, None] == group_C[None, :]
                gradient_RC = 2.0 * probability_RC - tl.where(known_RC, 2.0, 0.0)
            elif ATTRACT:
                gradient_RC = 2.0 * probability_RC
                gradient_RC -= mined_row_RC.to(tl.float32) + mined_column_RC.to(tl.float32)
            else:
                gradient_RC = tl.where(mined_row_RC, 0.0, probability_RC) + tl.where(
                    mined_column_RC, 0.0, probability_RC
                )
                gradient_RC -= tl.where(known_RC, 2.0, 0.0)
            by_scale_R += tl.sum(gradient_RC * cosine_RC, 1)
            by_bias_R += tl.sum(gradient_RC, 1)
            gradient_desc_RC.store([row - top, column - left], (gradient_RC * storage_scale).to(gradient_desc_RC.dtype))

    slot = row_slot + tl.program_id(1)
    place_R = row_R - top
    store_part(row_parts_ptr_FTR, IMAGE_LOSS, slot, n_row_slots, row_pitch, place_R, image_loss_R, inside_R)
    store_part(row_parts_ptr_FTR, TEXT_LOSS, slot, n_row_slots, row_pitch, place_R, text_loss_R, inside_R)
    store_part(row_parts_ptr_FTR, IMAGE_COUNT, slot, n_row_slots, row_pitch, place_R, image_count_R, inside_R)
    store_part(row_parts_ptr_FTR, TEXT_COUNT, slot, n_row_slots, row_pitch, place_R, text_count_R, inside_R)
    store_part(row_parts_ptr_FTR, BY_SCALE, slot, n_row_slots, row_pitch, place_R, by_scale_R, inside_R)
    store_part(row_parts_ptr_FTR, BY_BIAS, slot, n_row_slots, row_pitch, place_R, by_bias_R, inside_R)
    store_part(row_parts_ptr_FTR, BEST, slot, n_row_slots, row_pitch, place_R, best_R, inside_R)
    store_part(row_parts_ptr_FTR, HIT, slot, n_row_slots, row_pitch, place_R, hit_R, inside_R)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def soft_kernel(
    image_desc_RD,
    text_desc_CD,
    teacher_image_desc_RD,
    teacher_text_desc_CD,
    gradient_desc_RC,
    slope_ptr,
    teacher_slope_ptr,
    row_log_sums_ptr_FR,
    column_log_sums_ptr_FC,
    row_parts_ptr_FTR,
    top,
    bottom,
    left,
    right,
    strip,
    nD,
    teacher_nD,
    row_log_sums_pitch,
    column_log_sums_pitch,
    row_slot,
    n_row_slots,
    row_pitch,
    storage_scale,
    WITH_GRADIENT: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Computes the losses of `soft` (KL divergences) over the rows [top, bottom) and the columns [left, right).

    If WITH_GRADIENT is set, it also computes their gradient.

    Program (i, j) takes the i-th tile of rows and the j-th strip of `strip` columns, and goes over the strip tile by
    tile.

    Reads:
        image_desc_RD, text_desc_CD: Embeddings of the student.
        teacher_image_desc_RD, teacher_text_desc_CD: Features of the teacher, of width `teacher_nD`.
        row_log_sums_ptr_FR, column_log_sums_ptr_FC: Softmax normalisers of student and teacher: for each a peak, and
            log2 of the sum of 2^(score - peak).
    Writes:
        gradient_desc_RC: Only if WITH_GRADIENT is set: `storage_scale` times the gradient of the summed losses of both
            directions with respect to the scores, tile by tile.
        row_parts_ptr_FTR: [fields, n_row_slots, row_pitch]. The program writes to slot `row_slot + j` at its end. Only
            the fields IMAGE_LOSS, TEXT_LOSS and BY_SCALE are written.
    """
    tile = tl.program_id(0)
    row = top + tile * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    slope = tl.load(slope_ptr)
    teacher_slope = tl.load(teacher_slope_ptr)
    peak_R = load_log_sum(row_log_sums_ptr_FR, STUDENT_PEAK, row_log_sums_pitch, row_R, inside_R)
    log_R = load_log_sum(row_log_sums_ptr_FR, STUDENT_LOG, row_log_sums_pitch, row_R, inside_R)
    teacher_peak_R = load_log_sum(row_log_sums_ptr_FR, TEACHER_PEAK, row_log_sums_pitch, row_R, inside_R)
    teacher_log_R = load_log_sum(row_log_sums_ptr_FR, TEACHER_LOG, row_log_sums_pitch, row_R, inside_R)
    image_loss_R = tl.zeros([bR], tl.float32)
    text_loss_R = tl.zeros([bR], tl.float32)
    by_scale_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        teacher_score_RC = cosines(
            teacher_image_desc_RD, teacher_text_desc_CD, row, column, teacher_nD, bR, bC, bD, PRECISION, WIDEN
        )
        cosine_RC = cosines(image_desc_RD, text_desc_CD, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        inside_RC = inside_R[:, None] & inside_C[None, :]
        peak_C = load_log_sum(column_log_sums_ptr_FC, STUDENT_PEAK, column_log_sums_pitch, column_C, inside_C)
        log_C = load_log_sum(column_log_sums_ptr_FC, STUDENT_LOG, column_log_sums_pitch, column_C, inside_C)
        teacher_peak_C = load_log_sum(column_log_sums_ptr_FC, TEACHER_PEAK, column_log_sums_pitch, column_C, inside_C)
        teacher_log_C = load_log_sum(column_log_sums_ptr_FC, TEACHER_LOG, column_log_sums_pitch, column_C, inside_C)
        # 1. The scores of student and teacher. Beyond the end both distributions are 1, and their difference is 0.
        score_RC = tl.where(inside_RC, cosine_RC * slope, 0.0)
        teacher_score_RC = tl.where(inside_RC, teacher_score_RC * teacher_slope, 0.0)
        # 2. The image direction, with logarithms in base 2. The peak is subtracted first, because score and peak may be
        # large and nearly equal.
        log_student_RC = (score_RC - peak_R[:, None]) - log_R[:, None]
        log_teacher_RC = (teacher_score_RC - teacher_peak_R[:, None]) - teacher_log_R[:, None]
        teacher_RC = tl.exp2(log_teacher_RC)
        loss_RC = tl.where(inside_RC, teacher_RC * (log_teacher_RC - log_student_RC), 0.0)
        image_loss_R += tl.sum(loss_RC, 1)
        gradient_RC = tl.exp2(log_student_RC) - teacher_RC
        # 3. The text direction, in the same variables.
        log_student_RC = (score_RC - peak_C[None, :]) - log_C[None, :]
        log_teacher_RC = (teacher_score_RC - teacher_peak_C[None, :]) - teacher_log_C[None, :]
        teacher_RC = tl.exp2(log_teacher_RC)
        loss_RC = tl.where(inside_RC, teacher_RC * (log_teacher_RC - log_student_RC), 0.0)
        text_loss_R += tl.sum(loss_RC, 1)
        if WITH_GRADIENT:
            gradient_RC += tl.exp2(log_student_RC) - teacher_RC
            by_scale_R += tl.sum(gradient_RC * cosine_RC, 1)
            gradient_desc_RC.store([row - top, column - left], (gradient_RC * storage_scale).to(gradient_desc_RC.dtype))

    slot = row_slot + tl.program_id(1)
    place_R = row_R - top
    store_part(row_parts_ptr_FTR, IMAGE_LOSS, slot, n_row_slots, row_pitch, place_R, image_loss_R * LN_2, inside_R)
    store_part(row_parts_ptr_FTR, TEXT_LOSS, slot, n_row_slots, row_pitch, place_R, text_loss_R * LN_2, inside_R)
    store_part(row_parts_ptr_FTR, BY_SCALE, slot, n_row_slots, row_pitch, place_R, by_scale_R, inside_R)
