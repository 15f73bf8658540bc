r"""Objectives that are sums over pairs: the loss of a tile and its gradient at once, in one pass over the scores.

`sigmoid`, with \(t = \mathrm{scale} \langle v_i, u_j \rangle + \mathrm{bias}\), adds for each direction
\(\log(1 + e^t) - [\text{positive}]\,t\), and its gradient is \(\sigma(t) - [\text{positive}]\). One exponential gives
both: with \(e = 2^{-|t| \log_2 e}\), \(\log(1 + e^t) = \max(t, 0) + \log(1 + e)\) and \(\sigma(t)\) is 1 or
\(e\), over \(1 + e\). Almost all pairs have a tiny \(e\), of which \(1 + e\) in float32 would lose most: a
polynomial in \(e\) replaces the logarithm.

`soft` adds for each direction \(T (\log T - \log p)\), the gradient is \(p - T\). The normalisers of \(T\) and
\(p\) are known from an earlier pass of the statistics over teacher and student.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.contrastive.fused.kernels.tiles import LN_2, LOG2_E, RULE_NONE, found_pairs, has_known, mined_pairs
from emocap_kernels.fused.kernels.tiles import VARYING, cosines, put

# Lines of the parts of rows; columns have the last two alone, as their lines 0 and 1.
IMAGE_LOSS = tl.constexpr(0)
TEXT_LOSS = tl.constexpr(1)
IMAGE_COUNT = tl.constexpr(2)
TEXT_COUNT = tl.constexpr(3)
BY_SCALE = tl.constexpr(4)
BY_BIAS = tl.constexpr(5)
BEST = tl.constexpr(6)
FOUND = tl.constexpr(7)
ROW_LINES = 8
COLUMN_BEST = tl.constexpr(0)
COLUMN_FOUND = tl.constexpr(1)
COLUMN_LINES = 2

# Lines of the normalisers of `soft`, in base 2: a peak, and the logarithm of the sum relative to it. One number for
# both would round away how far a score is from the peak.
STUDENT_PEAK = tl.constexpr(0)
STUDENT_LOG = tl.constexpr(1)
TEACHER_PEAK = tl.constexpr(2)
TEACHER_LOG = tl.constexpr(3)


@triton.jit
def normaliser(log_sums_ptr, line: tl.constexpr, pitch, place, inside):
    return tl.load(log_sums_ptr + line * pitch + place, mask=inside, other=0.0)


@triton.jit
def log_of_one_plus(e):
    """Natural logarithm of 1 + e for e in [0, 1]: e times a polynomial, within 2^-22 of the result."""
    p = tl.fma(e, 0.005232623778283596, -0.029504956677556038)
    p = tl.fma(p, e, 0.07822549343109131)
    p = tl.fma(p, e, -0.1366320699453354)
    p = tl.fma(p, e, 0.1910598874092102)
    p = tl.fma(p, e, -0.2484297752380371)
    p = tl.fma(p, e, 0.3331909477710724)
    p = tl.fma(p, e, -0.4999949336051941)
    p = tl.fma(p, e, 0.9999999403953552)
    return p * e


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=["row_groups_ptr", "column_groups_ptr"])
def sigmoid_kernel(
    image_desc,
    text_desc,
    gradient_desc,
    scale_ptr,
    bias_ptr,
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
    gain,
    WANTED: tl.constexpr,
    HAS_IDS: tl.constexpr,
    RULE: tl.constexpr,
    ATTRACT: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Losses, counts and best scores of the chunk [top, bottom) x [left, right), and if `WANTED` its gradient.

    Without a rule the text direction has the losses of the image direction; counts are written under
    `attract` only, elsewhere they are those of the groups.
    """
    tile = tl.program_id(0)
    row = top + tile * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    own_R = first + row_R
    group_R = tl.load(row_groups_ptr + row_R, mask=inside_R, other=-1)
    scale = tl.load(scale_ptr)
    bias = tl.load(bias_ptr)
    image_loss_R = tl.zeros([bR], tl.float32)
    text_loss_R = tl.zeros([bR], tl.float32)
    image_count_R = tl.zeros([bR], tl.float32)
    text_count_R = tl.zeros([bR], tl.float32)
    by_scale_R = tl.zeros([bR], tl.float32)
    by_bias_R = tl.zeros([bR], tl.float32)
    best_R = tl.full([bR], float("-inf"), tl.float32)
    found_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        cosine_RC = cosines(image_desc, text_desc, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        group_C = tl.load(column_groups_ptr + column_C, mask=inside_C, other=-2)
        score_RC = cosine_RC * scale + bias
        if (row + bR > bottom) | (column + bC > right):
            score_RC = tl.where(inside_R[:, None] & inside_C[None, :], score_RC, float("-inf"))

        touched = has_known(group_R, group_C, first + row, column, bR, bC, HAS_IDS)
        found_tile_R, found_C = found_pairs(score_RC, group_R, group_C, own_R, column_C, touched, bR, bC)
        best_tile_R = tl.max(score_RC, 1)
        found_R = tl.where(best_tile_R > best_R, found_tile_R, found_R)
        best_R = tl.maximum(best_R, best_tile_R)
        put(column_parts_ptr, COLUMN_BEST, tile, n_column_slots, column_pitch, column_C, tl.max(score_RC, 0), inside_C)
        put(column_parts_ptr, COLUMN_FOUND, tile, n_column_slots, column_pitch, column_C, found_C, inside_C)

        e_RC = tl.exp2(-tl.abs(score_RC) * LOG2_E)
        softplus_RC = tl.maximum(score_RC, 0.0) + log_of_one_plus(e_RC)
        if RULE == RULE_NONE:
            if touched:
                known_RC = group_R[:, None] == group_C[None, :]
                image_loss_R -= tl.sum(tl.where(known_RC, score_RC, 0.0), 1)
            image_loss_R += tl.sum(softplus_RC, 1)
        else:
            mined_row_RC, mined_column_RC = mined_pairs(
                cosine_RC, threshold, marks_desc, row - top, column - left, RULE
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

        if WANTED:
            # 1 / (1 + e) as one instruction and a product: a division is eight.
            chance_RC = tl.where(score_RC >= 0, 1.0, e_RC) * tl.rsqrt((1.0 + e_RC) * (1.0 + e_RC))
            if RULE == RULE_NONE:
                known_RC = group_R[:, None] == group_C[None, :]
                gradient_RC = 2.0 * chance_RC - tl.where(known_RC, 2.0, 0.0)
            elif ATTRACT:
                gradient_RC = 2.0 * chance_RC
                gradient_RC -= mined_row_RC.to(tl.float32) + mined_column_RC.to(tl.float32)
            else:
                gradient_RC = tl.where(mined_row_RC, 0.0, chance_RC) + tl.where(mined_column_RC, 0.0, chance_RC)
                gradient_RC -= tl.where(known_RC, 2.0, 0.0)
            by_scale_R += tl.sum(gradient_RC * cosine_RC, 1)
            by_bias_R += tl.sum(gradient_RC, 1)
            gradient_desc.store([row - top, column - left], (gradient_RC * gain).to(gradient_desc.dtype))

    slot = row_slot + tl.program_id(1)
    place_R = row_R - top
    put(row_parts_ptr, IMAGE_LOSS, slot, n_row_slots, row_pitch, place_R, image_loss_R, inside_R)
    put(row_parts_ptr, TEXT_LOSS, slot, n_row_slots, row_pitch, place_R, text_loss_R, inside_R)
    put(row_parts_ptr, IMAGE_COUNT, slot, n_row_slots, row_pitch, place_R, image_count_R, inside_R)
    put(row_parts_ptr, TEXT_COUNT, slot, n_row_slots, row_pitch, place_R, text_count_R, inside_R)
    put(row_parts_ptr, BY_SCALE, slot, n_row_slots, row_pitch, place_R, by_scale_R, inside_R)
    put(row_parts_ptr, BY_BIAS, slot, n_row_slots, row_pitch, place_R, by_bias_R, inside_R)
    put(row_parts_ptr, BEST, slot, n_row_slots, row_pitch, place_R, best_R, inside_R)
    put(row_parts_ptr, FOUND, slot, n_row_slots, row_pitch, place_R, found_R, inside_R)


@triton.jit(do_not_specialize=VARYING)
def soft_kernel(
    image_desc,
    text_desc,
    teacher_image_desc,
    teacher_text_desc,
    gradient_desc,
    slope_ptr,
    teacher_slope_ptr,
    row_log_sums_ptr,
    column_log_sums_ptr,
    row_parts_ptr,
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
    gain,
    WANTED: tl.constexpr,
    bR: tl.constexpr,
    bC: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Divergences of the chunk [top, bottom) x [left, right), and if `WANTED` its gradient."""
    tile = tl.program_id(0)
    row = top + tile * bR
    row_R = row + tl.arange(0, bR)
    inside_R = row_R < bottom
    slope = tl.load(slope_ptr)
    teacher_slope = tl.load(teacher_slope_ptr)
    peak_R = normaliser(row_log_sums_ptr, STUDENT_PEAK, row_log_sums_pitch, row_R, inside_R)
    log_R = normaliser(row_log_sums_ptr, STUDENT_LOG, row_log_sums_pitch, row_R, inside_R)
    teacher_peak_R = normaliser(row_log_sums_ptr, TEACHER_PEAK, row_log_sums_pitch, row_R, inside_R)
    teacher_log_R = normaliser(row_log_sums_ptr, TEACHER_LOG, row_log_sums_pitch, row_R, inside_R)
    image_loss_R = tl.zeros([bR], tl.float32)
    text_loss_R = tl.zeros([bR], tl.float32)
    by_scale_R = tl.zeros([bR], tl.float32)
    begin = left + tl.program_id(1) * strip
    for column in tl.range(begin, tl.minimum(begin + strip, right), bC):
        taught_RC = cosines(
            teacher_image_desc, teacher_text_desc, row, column, teacher_nD, bR, bC, bD, PRECISION, WIDEN
        )
        cosine_RC = cosines(image_desc, text_desc, row, column, nD, bR, bC, bD, PRECISION, WIDEN)
        column_C = column + tl.arange(0, bC)
        inside_C = column_C < right
        inside_RC = inside_R[:, None] & inside_C[None, :]
        peak_C = normaliser(column_log_sums_ptr, STUDENT_PEAK, column_log_sums_pitch, column_C, inside_C)
        log_C = normaliser(column_log_sums_ptr, STUDENT_LOG, column_log_sums_pitch, column_C, inside_C)
        teacher_peak_C = normaliser(column_log_sums_ptr, TEACHER_PEAK, column_log_sums_pitch, column_C, inside_C)
        teacher_log_C = normaliser(column_log_sums_ptr, TEACHER_LOG, column_log_sums_pitch, column_C, inside_C)
        # Beyond the end both distributions are 1 and their difference 0.
        score_RC = tl.where(inside_RC, cosine_RC * slope, 0.0)
        taught_RC = tl.where(inside_RC, taught_RC * teacher_slope, 0.0)
        log_student_RC = (score_RC - peak_R[:, None]) - log_R[:, None]
        log_teacher_RC = (taught_RC - teacher_peak_R[:, None]) - teacher_log_R[:, None]
        teacher_RC = tl.exp2(log_teacher_RC)
        loss_RC = tl.where(inside_RC, teacher_RC * (log_teacher_RC - log_student_RC), 0.0)
        image_loss_R += tl.sum(loss_RC, 1)
        gradient_RC = tl.exp2(log_student_RC) - teacher_RC
        log_student_RC = (score_RC - peak_C[None, :]) - log_C[None, :]
        log_teacher_RC = (taught_RC - teacher_peak_C[None, :]) - teacher_log_C[None, :]
        teacher_RC = tl.exp2(log_teacher_RC)
        loss_RC = tl.where(inside_RC, teacher_RC * (log_teacher_RC - log_student_RC), 0.0)
        text_loss_R += tl.sum(loss_RC, 1)
        if WANTED:
            gradient_RC += tl.exp2(log_student_RC) - teacher_RC
            by_scale_R += tl.sum(gradient_RC * cosine_RC, 1)
            gradient_desc.store([row - top, column - left], (gradient_RC * gain).to(gradient_desc.dtype))

    slot = row_slot + tl.program_id(1)
    place_R = row_R - top
    put(row_parts_ptr, IMAGE_LOSS, slot, n_row_slots, row_pitch, place_R, image_loss_R * LN_2, inside_R)
    put(row_parts_ptr, TEXT_LOSS, slot, n_row_slots, row_pitch, place_R, text_loss_R * LN_2, inside_R)
    put(row_parts_ptr, BY_SCALE, slot, n_row_slots, row_pitch, place_R, by_scale_R, inside_R)
