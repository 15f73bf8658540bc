r"""Attention-weighted similarity of patches and sentences, and its gradient, an image at a time in registers.

Sentences are the rows of a tile and the patches of one image its columns, so that what a sentence makes of an image
is a reduction along its row, within a few lanes:

\[ r_{in} = \frac{\sum_p e_{ipn} z_{ipn}}{\sum_p e_{ipn}}, \qquad
   e_{ipn} = 2^{\mathrm{slope}\,(z_{ipn} - \max_q z_{iqn})}, \qquad
   \mathrm{slope} = \mathrm{sharpness} \cdot \log_2 e \]

No exponent is above 0, so any sharpness is safe. A tile is as wide as the patches of an image: up to three pieces,
powers of two each (196 = 128 + 64 + 4), that share every strip of the sentences. Where an image has more patches than
registers hold, windows of them go by under a running maximum.

Backward makes the tile again. With \(G_{in}\) the gradient in the score \(S_{in} = \mathrm{scale}\,r_{in}\),

\[ \frac{\partial L}{\partial z_{ipn}} = \mathrm{scale}\; G_{in}\, a_{ipn} (1 + \mathrm{sharpness}\,(z_{ipn} - r_{in})),
   \qquad a_{ipn} = e_{ipn} / \textstyle\sum_q e_{iqn} \]

goes, without the scale, into a chunk that the library multiplies with sentences and with patches.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import VARYING

# Dimension key:  S sentences of a tile   P patches of an image   D embedding   b* size of one tile along *

LOG2_E = tl.constexpr(1.4426950408889634)

# Marks of a pair: positive or left out, of its image (row) or of its sentence (column).
ROW_POSITIVE = tl.constexpr(1)
COLUMN_POSITIVE = tl.constexpr(2)
ROW_DROPPED = tl.constexpr(4)
COLUMN_DROPPED = tl.constexpr(8)

# Lines of the shares of an anchor: its peak, the weight of a candidate over its sum, the weight of a positive.
PEAK = tl.constexpr(0)
WEIGHT = tl.constexpr(1)
POSITIVE = tl.constexpr(2)
SHARES = 3


@triton.jit
def product_step(sentence_SD, patch_desc, place, d, z_SP, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    patch_PD = patch_desc.load([place, d])
    if WIDEN:
        patch_PD = patch_PD.to(tl.float32)
    return tl.dot(sentence_SD, patch_PD.T, z_SP, input_precision=PRECISION)


@triton.jit
def similarities(
    sentence_desc,
    patch_desc,
    patch_desc_1,
    patch_desc_2,
    sentence,
    image,
    patch,
    nD,
    nP: tl.constexpr,
    bS: tl.constexpr,
    bP: tl.constexpr,
    bP_1: tl.constexpr,
    bP_2: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products of `bS` sentences and a window of the patches of one image, in three pieces.

    A piece of width 1 is not there. What reaches beyond the patches of the image are those of the next one.
    """
    place = image * nP + patch
    z_SP = tl.zeros([bS, bP], tl.float32)
    z_SP_1 = tl.zeros([bS, bP_1], tl.float32)
    z_SP_2 = tl.zeros([bS, bP_2], tl.float32)
    for d in range(0, nD, bD):
        sentence_SD = sentence_desc.load([sentence, d])
        if WIDEN:
            sentence_SD = sentence_SD.to(tl.float32)
        z_SP = product_step(sentence_SD, patch_desc, place, d, z_SP, PRECISION, WIDEN)
        if bP_1 > 1:
            z_SP_1 = product_step(sentence_SD, patch_desc_1, place + bP, d, z_SP_1, PRECISION, WIDEN)
        if bP_2 > 1:
            z_SP_2 = product_step(sentence_SD, patch_desc_2, place + bP + bP_1, d, z_SP_2, PRECISION, WIDEN)
    return z_SP, z_SP_1, z_SP_2


@triton.jit
def kept(keep_ptr, image, patch, nP: tl.constexpr, bP: tl.constexpr, MASKED: tl.constexpr):
    """Which patches of a piece take part, bool [1, bP]."""
    patch_P = patch + tl.arange(0, bP)
    keep_P = patch_P < nP
    if MASKED:
        keep_P = tl.load(keep_ptr + tl.cast(image, tl.int64) * nP + patch_P, mask=keep_P, other=0) != 0
    return keep_P[None, :]


@triton.jit
def largest(peak_S, z_SP, keep_P, RAGGED: tl.constexpr):
    if RAGGED:
        z_SP = tl.where(keep_P, z_SP, float("-inf"))
    return tl.maximum(peak_S, tl.max(z_SP, 1))


@triton.jit
def finite(peak_S):
    # No patch takes part: subtracting -inf would make NaN.
    return tl.where(peak_S == float("-inf"), 0.0, peak_S)


@triton.jit
def exponentials(z_SP, keep_P, shift_S, slope, RAGGED: tl.constexpr):
    """2^(slope z - shift), and 0 for patches that take no part; `shift` is that of the largest z."""
    exponent_SP = z_SP * slope - shift_S[:, None]
    if RAGGED:
        exponent_SP = tl.where(keep_P, exponent_SP, float("-inf"))
    return tl.exp2(exponent_SP)


@triton.jit
def added(total_S, weighted_S, z_SP, keep_P, shift_S, slope, RAGGED: tl.constexpr):
    e_SP = exponentials(z_SP, keep_P, shift_S, slope, RAGGED)
    return total_S + tl.sum(e_SP, 1), weighted_S + tl.sum(e_SP * z_SP, 1)


@triton.jit
def window_sums(
    peak_S,
    total_S,
    weighted_S,
    z_SP,
    z_SP_1,
    z_SP_2,
    keep_ptr,
    image,
    patch,
    slope,
    nP: tl.constexpr,
    bP: tl.constexpr,
    bP_1: tl.constexpr,
    bP_2: tl.constexpr,
    WINDOWS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Running sums of e and of e z, kept relative to the largest z so far, with one more window."""
    # Only a piece that reaches beyond the patches of an image needs to look.
    RAGGED: tl.constexpr = MASKED or WINDOWS > 1 or bP > nP
    RAGGED_1: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 > nP
    RAGGED_2: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 + bP_2 > nP
    keep_P = kept(keep_ptr, image, patch, nP, bP, MASKED)
    keep_P_1 = kept(keep_ptr, image, patch + bP, nP, bP_1, MASKED)
    keep_P_2 = kept(keep_ptr, image, patch + bP + bP_1, nP, bP_2, MASKED)
    new_S = largest(peak_S, z_SP, keep_P, RAGGED)
    if bP_1 > 1:
        new_S = largest(new_S, z_SP_1, keep_P_1, RAGGED_1)
    if bP_2 > 1:
        new_S = largest(new_S, z_SP_2, keep_P_2, RAGGED_2)
    shift_S = finite(new_S) * slope
    if WINDOWS > 1:
        rescale_S = tl.exp2(finite(peak_S) * slope - shift_S)
        # Nothing was summed before the first patch that takes part.
        rescale_S = tl.where(peak_S == float("-inf"), 0.0, rescale_S)
        total_S *= rescale_S
        weighted_S *= rescale_S
    total_S, weighted_S = added(total_S, weighted_S, z_SP, keep_P, shift_S, slope, RAGGED)
    if bP_1 > 1:
        total_S, weighted_S = added(total_S, weighted_S, z_SP_1, keep_P_1, shift_S, slope, RAGGED_1)
    if bP_2 > 1:
        total_S, weighted_S = added(total_S, weighted_S, z_SP_2, keep_P_2, shift_S, slope, RAGGED_2)
    return new_S, total_S, weighted_S


@triton.jit
def image_sums(
    sentence_desc,
    patch_desc,
    patch_desc_1,
    patch_desc_2,
    keep_ptr,
    sentence,
    image,
    slope,
    nD,
    nP: tl.constexpr,
    bS: tl.constexpr,
    bP: tl.constexpr,
    bP_1: tl.constexpr,
    bP_2: tl.constexpr,
    bD: tl.constexpr,
    WINDOWS: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """The largest z of each sentence, its sums of e and of e z, and the products if there is one window."""
    peak_S = tl.full([bS], float("-inf"), tl.float32)
    total_S = tl.zeros([bS], tl.float32)
    weighted_S = tl.zeros([bS], tl.float32)
    z_SP, z_SP_1, z_SP_2 = similarities(
        sentence_desc,
        patch_desc,
        patch_desc_1,
        patch_desc_2,
        sentence,
        image,
        0,
        nD,
        nP,
        bS,
        bP,
        bP_1,
        bP_2,
        bD,
        PRECISION,
        WIDEN,
    )
    peak_S, total_S, weighted_S = window_sums(
        peak_S,
        total_S,
        weighted_S,
        z_SP,
        z_SP_1,
        z_SP_2,
        keep_ptr,
        image,
        0,
        slope,
        nP,
        bP,
        bP_1,
        bP_2,
        WINDOWS,
        MASKED,
    )
    for window in range(1, WINDOWS):
        patch = window * width(bP, bP_1, bP_2)
        next_SP, next_SP_1, next_SP_2 = similarities(
            sentence_desc,
            patch_desc,
            patch_desc_1,
            patch_desc_2,
            sentence,
            image,
            patch,
            nD,
            nP,
            bS,
            bP,
            bP_1,
            bP_2,
            bD,
            PRECISION,
            WIDEN,
        )
        peak_S, total_S, weighted_S = window_sums(
            peak_S,
            total_S,
            weighted_S,
            next_SP,
            next_SP_1,
            next_SP_2,
            keep_ptr,
            image,
            patch,
            slope,
            nP,
            bP,
            bP_1,
            bP_2,
            WINDOWS,
            MASKED,
        )
    return peak_S, total_S, weighted_S, z_SP, z_SP_1, z_SP_2


@triton.jit
def width(bP: tl.constexpr, bP_1: tl.constexpr, bP_2: tl.constexpr):
    """Patches of a window."""
    patches: tl.constexpr = bP + (bP_1 if bP_1 > 1 else 0) + (bP_2 if bP_2 > 1 else 0)
    return patches


@triton.jit(do_not_specialize=VARYING)
def pool_kernel(
    sentence_desc,
    patch_desc,
    patch_desc_1,
    patch_desc_2,
    keep_ptr,
    scale_ptr,
    scores_ptr,
    slope,
    bottom,
    right,
    strip,
    row_pitch,
    nD,
    nP: tl.constexpr,
    bS: tl.constexpr,
    bP: tl.constexpr,
    bP_1: tl.constexpr,
    bP_2: tl.constexpr,
    bD: tl.constexpr,
    WINDOWS: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Scores of `strip` of the images [0, bottom) with a tile of the sentences [0, right), [images, row_pitch]."""
    sentence = tl.program_id(0) * bS
    sentence_S = sentence + tl.arange(0, bS)
    scale = tl.load(scale_ptr)
    begin = tl.program_id(1) * strip
    for image in tl.range(begin, tl.minimum(begin + strip, bottom)):
        _, total_S, weighted_S, _, _, _ = image_sums(
            sentence_desc,
            patch_desc,
            patch_desc_1,
            patch_desc_2,
            keep_ptr,
            sentence,
            image,
            slope,
            nD,
            nP,
            bS,
            bP,
            bP_1,
            bP_2,
            bD,
            WINDOWS,
            MASKED,
            PRECISION,
            WIDEN,
        )
        # No patch kept: a score of 0.
        score_S = scale * weighted_S / tl.where(total_S > 0.0, total_S, 1.0)
        place_S = tl.cast(image, tl.int64) * row_pitch + sentence_S
        tl.store(scores_ptr + place_S, score_S, mask=sentence_S < right)


@triton.jit
def score_gradient(
    score_S,
    image,
    marks_S,
    row_shares_ptr,
    row_pitch,
    column_peak_S,
    column_weight_S,
    column_positive_S,
):
    """Of both directions, for one image and the sentences of a tile."""
    row_peak = tl.load(row_shares_ptr + PEAK * row_pitch + image)
    row_weight = tl.load(row_shares_ptr + WEIGHT * row_pitch + image)
    row_positive = tl.load(row_shares_ptr + POSITIVE * row_pitch + image)
    by_row_S = tl.exp2((score_S - row_peak) * LOG2_E) * row_weight
    by_column_S = tl.exp2((score_S - column_peak_S) * LOG2_E) * column_weight_S
    gradient_S = tl.where((marks_S & ROW_DROPPED) != 0, 0.0, by_row_S)
    gradient_S += tl.where((marks_S & COLUMN_DROPPED) != 0, 0.0, by_column_S)
    gradient_S -= tl.where((marks_S & ROW_POSITIVE) != 0, row_positive, 0.0)
    gradient_S -= tl.where((marks_S & COLUMN_POSITIVE) != 0, column_positive_S, 0.0)
    return gradient_S


@triton.jit
def put_piece(
    gradient_desc,
    sentence,
    image,
    patch,
    z_SP,
    keep_P,
    shift_S,
    slope,
    constant_S,
    linear_S,
    bS: tl.constexpr,
    bP: tl.constexpr,
    RAGGED: tl.constexpr,
):
    e_SP = exponentials(z_SP, keep_P, shift_S, slope, RAGGED)
    gradient_SP = e_SP * (constant_S[:, None] + linear_S[:, None] * z_SP)
    gradient_desc.store([sentence, image, patch], gradient_SP.to(gradient_desc.dtype).reshape(bS, 1, bP))


@triton.jit
def put_window(
    gradient_desc,
    gradient_desc_1,
    gradient_desc_2,
    keep_ptr,
    sentence,
    image,
    patch,
    z_SP,
    z_SP_1,
    z_SP_2,
    shift_S,
    slope,
    constant_S,
    linear_S,
    nP: tl.constexpr,
    bS: tl.constexpr,
    bP: tl.constexpr,
    bP_1: tl.constexpr,
    bP_2: tl.constexpr,
    WINDOWS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """E (constant + linear z) of a window, into the chunk."""
    RAGGED: tl.constexpr = MASKED or WINDOWS > 1 or bP > nP
    RAGGED_1: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 > nP
    RAGGED_2: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 + bP_2 > nP
    keep_P = kept(keep_ptr, image, patch, nP, bP, MASKED)
    put_piece(gradient_desc, sentence, image, patch, z_SP, keep_P, shift_S, slope, constant_S, linear_S, bS, bP, RAGGED)
    if bP_1 > 1:
        place = patch + bP
        keep_P_1 = kept(keep_ptr, image, place, nP, bP_1, MASKED)
        put_piece(
            gradient_desc_1,
            sentence,
            image,
            place,
            z_SP_1,
            keep_P_1,
            shift_S,
            slope,
            constant_S,
            linear_S,
            bS,
            bP_1,
            RAGGED_1,
        )
    if bP_2 > 1:
        place_2 = patch + bP + bP_1
        keep_P_2 = kept(keep_ptr, image, place_2, nP, bP_2, MASKED)
        put_piece(
            gradient_desc_2,
            sentence,
            image,
            place_2,
            z_SP_2,
            keep_P_2,
            shift_S,
            slope,
            constant_S,
            linear_S,
            bS,
            bP_2,
            RAGGED_2,
        )


@triton.jit(do_not_specialize=VARYING)
def carry_kernel(
    sentence_desc,
    patch_desc,
    patch_desc_1,
    patch_desc_2,
    gradient_desc,
    gradient_desc_1,
    gradient_desc_2,
    keep_ptr,
    marks_ptr,
    row_shares_ptr,
    column_shares_ptr,
    scale_parts_ptr,
    scale_ptr,
    slope,
    sharpness,
    gain,
    bottom,
    right,
    strip,
    row_pitch,
    column_pitch,
    nD,
    nP: tl.constexpr,
    bS: tl.constexpr,
    bP: tl.constexpr,
    bP_1: tl.constexpr,
    bP_2: tl.constexpr,
    bD: tl.constexpr,
    WINDOWS: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """`gain` times the gradient in the similarities over scale, [sentences, images, patches]; and parts of the scale's.

    Marks are uint8 [images, column_pitch]; shares are [lines, row_pitch] and [lines, column_pitch].
    """
    sentence = tl.program_id(0) * bS
    sentence_S = sentence + tl.arange(0, bS)
    inside_S = sentence_S < right
    scale = tl.load(scale_ptr)
    column_ptr = column_shares_ptr + sentence_S
    column_peak_S = tl.load(column_ptr + PEAK * column_pitch, mask=inside_S, other=0.0)
    column_weight_S = tl.load(column_ptr + WEIGHT * column_pitch, mask=inside_S, other=0.0)
    column_positive_S = tl.load(column_ptr + POSITIVE * column_pitch, mask=inside_S, other=0.0)
    by_scale_S = tl.zeros([bS], tl.float32)
    begin = tl.program_id(1) * strip
    for image in tl.range(begin, tl.minimum(begin + strip, bottom)):
        peak_S, total_S, weighted_S, z_SP, z_SP_1, z_SP_2 = image_sums(
            sentence_desc,
            patch_desc,
            patch_desc_1,
            patch_desc_2,
            keep_ptr,
            sentence,
            image,
            slope,
            nD,
            nP,
            bS,
            bP,
            bP_1,
            bP_2,
            bD,
            WINDOWS,
            MASKED,
            PRECISION,
            WIDEN,
        )
        # No patch kept: its similarities have no gradient.
        share_S = tl.where(total_S > 0.0, 1.0 / tl.where(total_S > 0.0, total_S, 1.0), 0.0)
        pooled_S = weighted_S * share_S
        marks_S = tl.load(marks_ptr + tl.cast(image, tl.int64) * column_pitch + sentence_S, mask=inside_S, other=0)
        gradient_S = score_gradient(
            pooled_S * scale,
            image,
            marks_S,
            row_shares_ptr,
            row_pitch,
            column_peak_S,
            column_weight_S,
            column_positive_S,
        )
        # Beyond the end a score of 0 may lie far above the peak of the row.
        gradient_S = tl.where(inside_S, gradient_S, 0.0)
        by_scale_S += gradient_S * pooled_S

        # Times a (1 + sharpness (z - r)), which is e (constant + linear z).
        gradient_S *= share_S * gain
        linear_S = gradient_S * sharpness
        constant_S = gradient_S - linear_S * pooled_S
        shift_S = finite(peak_S) * slope
        if WINDOWS == 1:
            put_window(
                gradient_desc,
                gradient_desc_1,
                gradient_desc_2,
                keep_ptr,
                sentence,
                image,
                0,
                z_SP,
                z_SP_1,
                z_SP_2,
                shift_S,
                slope,
                constant_S,
                linear_S,
                nP,
                bS,
                bP,
                bP_1,
                bP_2,
                WINDOWS,
                MASKED,
            )
        else:
            # Registers hold one window: each is made once more.
            for window in range(WINDOWS):
                patch = window * width(bP, bP_1, bP_2)
                again_SP, again_SP_1, again_SP_2 = similarities(
                    sentence_desc,
                    patch_desc,
                    patch_desc_1,
                    patch_desc_2,
                    sentence,
                    image,
                    patch,
                    nD,
                    nP,
                    bS,
                    bP,
                    bP_1,
                    bP_2,
                    bD,
                    PRECISION,
                    WIDEN,
                )
                put_window(
                    gradient_desc,
                    gradient_desc_1,
                    gradient_desc_2,
                    keep_ptr,
                    sentence,
                    image,
                    patch,
                    again_SP,
                    again_SP_1,
                    again_SP_2,
                    shift_S,
                    slope,
                    constant_S,
                    linear_S,
                    nP,
                    bS,
                    bP,
                    bP_1,
                    bP_2,
                    WINDOWS,
                    MASKED,
                )
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(scale_parts_ptr + program, tl.sum(by_scale_S, 0))
