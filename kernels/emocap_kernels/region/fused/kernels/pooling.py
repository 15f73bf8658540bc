r"""Contains the kernels that pool patches by attention: the scores of images with sentences, and their gradient.

Sentences are the rows of a tile, and the patches of one image are its columns. Let \(z_{ipn}\) be the similarity of
sentence n with patch p of image i. The pooled similarity of the sentence with the image is then a reduction along one
row, within a few threads:

\[ r_{in} = \frac{\sum_p e_{ipn} z_{ipn}}{\sum_p e_{ipn}}, \qquad
   e_{ipn} = 2^{\mathrm{slope}\,(z_{ipn} - \max_q z_{iqn})}, \qquad
   \mathrm{slope} = \mathrm{sharpness} \cdot \log_2 e \]

No exponent is above 0, so any sharpness is safe. A tile covers all patches of an image by up to three pieces, each of
which is as wide as a power of two (196 patches need 128 + 64 + 16). The sentences are loaded once for all pieces. If an
image has more patches than registers hold, the kernel processes them in several parts (windows) and keeps a running
maximum.

Backward computes the tile again. \(G_{in}\) is the gradient with respect to the score
\(S_{in} = \mathrm{scale}\,r_{in}\). The gradient with respect to a similarity is

\[ \frac{\partial L}{\partial z_{ipn}} = \mathrm{scale}\; G_{in}\, a_{ipn} (1 + \mathrm{sharpness}\,(z_{ipn} - r_{in})),
   \qquad a_{ipn} = e_{ipn} / \textstyle\sum_q e_{iqn}. \]

It is written, without the factor scale, to a chunk of memory. Then torch multiplies this chunk with the sentences to
get the gradients of the patches, and with the patches to get those of the sentences.

`pool_kernel` is forward and `pool_backward_kernel` is backward. Both call `image_sums`. For each window of an image,
this function calls `similarities` for the dot products, and `window_sums` to add the window to the sums over the
patches. Decision 12 gives the reasons for this form.
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from emocap_kernels.fused.kernels.tiles import NOT_SPECIALIZED

# Axes:  S sentences of a tile   P patches of one image   D embedding   I images   F fields   T programs
#        b* size of a tile along *   n* how many there are   *_1 and *_2 the second and the third piece of the patches

LOG2_E = tl.constexpr(1.4426950408889634)

# Bits of a mask byte: a pair is a positive of, or is excluded for, its image (row) or its sentence (column).
ROW_POSITIVE = tl.constexpr(1)
COLUMN_POSITIVE = tl.constexpr(2)
ROW_DROPPED = tl.constexpr(4)
COLUMN_DROPPED = tl.constexpr(8)

# The gradient weights of an anchor: its peak, the weight of a candidate over its sum, the weight of a positive.
PEAK = tl.constexpr(0)
WEIGHT = tl.constexpr(1)
POSITIVE = tl.constexpr(2)
N_FIELDS = 3


@triton.jit
def add_product(sentence_SD, patch_desc_PD, place, d, z_SP, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Adds to `z_SP` a part of the dot products of sentences with patches, and returns the sums.

    The part is the sum over a range of vector elements that begins at index `d`, and is as long as a row of
    `sentence_SD`. `sentence_SD` holds these elements of the sentences. Those of the patches are loaded from
    `patch_desc_PD`, where row `place` is the first patch.
    """
    patch_PD = patch_desc_PD.load([place, d])
    if WIDEN:
        patch_PD = patch_PD.to(tl.float32)
    return tl.dot(sentence_SD, patch_PD.T, z_SP, input_precision=PRECISION)


@triton.jit
def similarities(
    sentence_desc_SD,
    patch_desc_PD,
    patch_desc_PD_1,
    patch_desc_PD_2,
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
    """Returns the dot products of `bS` sentences with a window of the patches of one image, in three pieces.

    A window is a range of patches that are processed together; this one begins at `patch`. Its pieces have `bP`, `bP_1`
    and `bP_2` patches. A width of 1 means that the window has no such piece; the result for it is zeros. Columns beyond
    the patches of the image belong to the next image, so callers must mask them.

    The descriptors treat the patches of all images as one matrix. Tiles of a three-dimensional tensor were tried. For
    sm_80 they compiled to pointer arithmetic, which spilled 550 bytes of registers (docs/log.md, 2026-11-23).
    """
    # All pieces use the sentences of a step that are loaded once.
    place = image * nP + patch
    z_SP = tl.zeros([bS, bP], tl.float32)
    z_SP_1 = tl.zeros([bS, bP_1], tl.float32)
    z_SP_2 = tl.zeros([bS, bP_2], tl.float32)
    for d in range(0, nD, bD):
        sentence_SD = sentence_desc_SD.load([sentence, d])
        if WIDEN:
            sentence_SD = sentence_SD.to(tl.float32)
        z_SP = add_product(sentence_SD, patch_desc_PD, place, d, z_SP, PRECISION, WIDEN)
        if bP_1 > 1:
            z_SP_1 = add_product(sentence_SD, patch_desc_PD_1, place + bP, d, z_SP_1, PRECISION, WIDEN)
        if bP_2 > 1:
            z_SP_2 = add_product(sentence_SD, patch_desc_PD_2, place + bP + bP_1, d, z_SP_2, PRECISION, WIDEN)
    return z_SP, z_SP_1, z_SP_2


@triton.jit
def kept_patches(keep_ptr_IP, image, patch, nP: tl.constexpr, bP: tl.constexpr, MASKED: tl.constexpr):
    """Returns a mask of `bP` patches, of which `patch` is the first index, bool [1, bP].

    The mask is True for patches that exist (their index is less than `nP`) and are kept. With MASKED, `keep_ptr_IP`
    says which patches are kept; otherwise all are.
    """
    patch_P = patch + tl.arange(0, bP)
    keep_P = patch_P < nP
    if MASKED:
        keep_P = tl.load(keep_ptr_IP + tl.cast(image, tl.int64) * nP + patch_P, mask=keep_P, other=0) != 0
    return keep_P[None, :]


@triton.jit
def largest(peak_S, z_SP, keep_P, RAGGED: tl.constexpr):
    """Returns the larger of `peak_S` and the largest similarity of a kept patch in `z_SP`, for each sentence.

    `peak_S` is the largest similarity in earlier pieces of the image's patches. RAGGED says whether some patches of
    this piece do not exist or are not kept.
    """
    if RAGGED:
        z_SP = tl.where(keep_P, z_SP, float("-inf"))
    return tl.maximum(peak_S, tl.max(z_SP, 1))


@triton.jit
def finite(peak_S):
    """Returns the peak, or 0 where it is -inf because no patch is kept: -inf minus -inf would give NaN."""
    return tl.where(peak_S == float("-inf"), 0.0, peak_S)


@triton.jit
def exponentials(z_SP, keep_P, shift_S, slope, RAGGED: tl.constexpr):
    """Returns 2^(slope * z - shift) for the similarities z, and 0 for patches that are not kept.

    `shift_S` is `slope` times the largest z of each sentence.
    """
    exponent_SP = z_SP * slope - shift_S[:, None]
    if RAGGED:
        exponent_SP = tl.where(keep_P, exponent_SP, float("-inf"))
    return tl.exp2(exponent_SP)


@triton.jit
def add_to_sums(sum_exp2_S, weighted_S, z_SP, keep_P, shift_S, slope, RAGGED: tl.constexpr):
    """Adds one more piece of patches to two sums of each sentence, and returns them.

    The first sum is that of the exponentials e, and the second is that of e times the similarity z.
    """
    e_SP = exponentials(z_SP, keep_P, shift_S, slope, RAGGED)
    return sum_exp2_S + tl.sum(e_SP, 1), weighted_S + tl.sum(e_SP * z_SP, 1)


@triton.jit
def window_sums(
    peak_S,
    sum_exp2_S,
    weighted_S,
    z_SP,
    z_SP_1,
    z_SP_2,
    keep_ptr_IP,
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
    """Adds one more window of patches to the sums of each sentence over the patches of one image.

    A window is a range of patches that are processed together, in up to three pieces. Returns the largest similarity z
    so far, and the sums of e and of e * z, where e is 2^(slope * (z - largest z)).
    """
    # Without a mask, only a piece that reaches beyond the patches of an image must be masked.
    RAGGED: tl.constexpr = MASKED or WINDOWS > 1 or bP > nP
    RAGGED_1: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 > nP
    RAGGED_2: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 + bP_2 > nP
    keep_P = kept_patches(keep_ptr_IP, image, patch, nP, bP, MASKED)
    keep_P_1 = kept_patches(keep_ptr_IP, image, patch + bP, nP, bP_1, MASKED)
    keep_P_2 = kept_patches(keep_ptr_IP, image, patch + bP + bP_1, nP, bP_2, MASKED)
    new_S = largest(peak_S, z_SP, keep_P, RAGGED)
    if bP_1 > 1:
        new_S = largest(new_S, z_SP_1, keep_P_1, RAGGED_1)
    if bP_2 > 1:
        new_S = largest(new_S, z_SP_2, keep_P_2, RAGGED_2)
    shift_S = finite(new_S) * slope
    # With one window, the sums are still 0 here.
    if WINDOWS > 1:
        rescale_S = tl.exp2(finite(peak_S) * slope - shift_S)
        # Before the first patch that is kept, the sums are 0.
        rescale_S = tl.where(peak_S == float("-inf"), 0.0, rescale_S)
        sum_exp2_S *= rescale_S
        weighted_S *= rescale_S
    sum_exp2_S, weighted_S = add_to_sums(sum_exp2_S, weighted_S, z_SP, keep_P, shift_S, slope, RAGGED)
    if bP_1 > 1:
        sum_exp2_S, weighted_S = add_to_sums(sum_exp2_S, weighted_S, z_SP_1, keep_P_1, shift_S, slope, RAGGED_1)
    if bP_2 > 1:
        sum_exp2_S, weighted_S = add_to_sums(sum_exp2_S, weighted_S, z_SP_2, keep_P_2, shift_S, slope, RAGGED_2)
    return new_S, sum_exp2_S, weighted_S


@triton.jit
def image_sums(
    sentence_desc_SD,
    patch_desc_PD,
    patch_desc_PD_1,
    patch_desc_PD_2,
    keep_ptr_IP,
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
    """Returns for each sentence the largest z and the sums of e and of e * z over the patches of one image.

    z is the similarity with a patch, and e is 2^(slope * (z - largest z)). The patches are processed in windows of
    `window_width` patches. The last three results are the similarities z of the first window, one result for each of
    its three pieces (`bP`, `bP_1`, `bP_2`). If there is only one window, backward uses them and need not compute them
    again.
    """
    peak_S = tl.full([bS], float("-inf"), tl.float32)
    sum_exp2_S = tl.zeros([bS], tl.float32)
    weighted_S = tl.zeros([bS], tl.float32)
    z_SP, z_SP_1, z_SP_2 = similarities(
        sentence_desc_SD,
        patch_desc_PD,
        patch_desc_PD_1,
        patch_desc_PD_2,
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
    peak_S, sum_exp2_S, weighted_S = window_sums(
        peak_S,
        sum_exp2_S,
        weighted_S,
        z_SP,
        z_SP_1,
        z_SP_2,
        keep_ptr_IP,
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
        patch = window * window_width(bP, bP_1, bP_2)
        next_SP, next_SP_1, next_SP_2 = similarities(
            sentence_desc_SD,
            patch_desc_PD,
            patch_desc_PD_1,
            patch_desc_PD_2,
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
        peak_S, sum_exp2_S, weighted_S = window_sums(
            peak_S,
            sum_exp2_S,
            weighted_S,
            next_SP,
            next_SP_1,
            next_SP_2,
            keep_ptr_IP,
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
    return peak_S, sum_exp2_S, weighted_S, z_SP, z_SP_1, z_SP_2


@triton.jit
def window_width(bP: tl.constexpr, bP_1: tl.constexpr, bP_2: tl.constexpr):
    """Returns the number of patches that are processed together (a window): the sum of the sizes of the pieces.

    A size of 1 means that there is no such piece, so it does not count.
    """
    patches: tl.constexpr = bP + (bP_1 if bP_1 > 1 else 0) + (bP_2 if bP_2 > 1 else 0)
    return patches


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def pool_kernel(
    sentence_desc_SD,
    patch_desc_PD,
    patch_desc_PD_1,
    patch_desc_PD_2,
    keep_ptr_IP,
    scale_ptr,
    scores_ptr_IS,
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
    """Computes the scores of images with sentences.

    Program (j, i) takes the j-th tile of the sentences [0, right) and the i-th strip of the images [0, bottom). A strip
    has `strip` images, and the program processes one after the other.

    Reads:
        sentence_desc_SD: Sentences.
        patch_desc_PD, patch_desc_PD_1, patch_desc_PD_2: Patches of all images, in tiles of the three pieces.
        keep_ptr_IP: With MASKED, uint8 [images, nP], 1 for patches that are kept.
    Writes:
        scores_ptr_IS: float32 [images, row_pitch], the scores, which contain the factor scale. A program writes those
            of an image as soon as it has computed them.
    """
    sentence = tl.program_id(0) * bS
    sentence_S = sentence + tl.arange(0, bS)
    scale = tl.load(scale_ptr)
    begin = tl.program_id(1) * strip
    for image in tl.range(begin, tl.minimum(begin + strip, bottom)):
        _, sum_exp2_S, weighted_S, _, _, _ = image_sums(
            sentence_desc_SD,
            patch_desc_PD,
            patch_desc_PD_1,
            patch_desc_PD_2,
            keep_ptr_IP,
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
        # If no patch is kept, the score is 0.
        score_S = scale * weighted_S / tl.where(sum_exp2_S > 0.0, sum_exp2_S, 1.0)
        place_S = tl.cast(image, tl.int64) * row_pitch + sentence_S
        tl.store(scores_ptr_IS + place_S, score_S, mask=sentence_S < right)


@triton.jit
def score_gradient(
    score_S,
    image,
    mask_S,
    row_weights_ptr_FI,
    row_pitch,
    column_peak_S,
    column_weight_S,
    column_positive_S,
):
    """Returns 2A times the gradient of the loss with respect to the scores of one image with some sentences, [bS].

    A is the number of images that have a sentence. `mask_S` holds the bits that mark positives and excluded pairs. The
    gradient weights (`GradientWeights`) of the image are read from `row_weights_ptr_FI`, whose rows have the length
    `row_pitch`. The last three arguments are the gradient weights of the sentences.
    """
    # The image is one row for the whole tile, so its weights are single numbers.
    row_peak = tl.load(row_weights_ptr_FI + PEAK * row_pitch + image)
    row_weight = tl.load(row_weights_ptr_FI + WEIGHT * row_pitch + image)
    row_positive = tl.load(row_weights_ptr_FI + POSITIVE * row_pitch + image)
    by_row_S = tl.exp2((score_S - row_peak) * LOG2_E) * row_weight
    by_column_S = tl.exp2((score_S - column_peak_S) * LOG2_E) * column_weight_S
    gradient_S = tl.where((mask_S & ROW_DROPPED) != 0, 0.0, by_row_S)
    gradient_S += tl.where((mask_S & COLUMN_DROPPED) != 0, 0.0, by_column_S)
    gradient_S -= tl.where((mask_S & ROW_POSITIVE) != 0, row_positive, 0.0)
    gradient_S -= tl.where((mask_S & COLUMN_POSITIVE) != 0, column_positive_S, 0.0)
    return gradient_S


@triton.jit
def store_piece(
    gradient_desc_SIP,
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
    """Writes the gradients with respect to the similarities z of one piece of `bP` patches to `gradient_desc_SIP`.

    The gradients are e * (constant + linear * z), where e is the result of `exponentials`.
    """
    e_SP = exponentials(z_SP, keep_P, shift_S, slope, RAGGED)
    gradient_SP = e_SP * (constant_S[:, None] + linear_S[:, None] * z_SP)
    gradient_desc_SIP.store([sentence, image, patch], gradient_SP.to(gradient_desc_SIP.dtype).reshape(bS, 1, bP))


@triton.jit
def store_window(
    gradient_desc_SIP,
    gradient_desc_SIP_1,
    gradient_desc_SIP_2,
    keep_ptr_IP,
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
    """Writes the gradients with respect to the similarities z of one window of patches to memory.

    A window is a range of patches that are processed together, in up to three pieces. `store_piece` writes each piece.
    """
    # The same conditions as in `window_sums`. Columns beyond the patches of the image get the gradient 0.
    RAGGED: tl.constexpr = MASKED or WINDOWS > 1 or bP > nP
    RAGGED_1: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 > nP
    RAGGED_2: tl.constexpr = MASKED or WINDOWS > 1 or bP + bP_1 + bP_2 > nP
    keep_P = kept_patches(keep_ptr_IP, image, patch, nP, bP, MASKED)
    store_piece(
        gradient_desc_SIP, sentence, image, patch, z_SP, keep_P, shift_S, slope, constant_S, linear_S, bS, bP, RAGGED
    )
    if bP_1 > 1:
        place = patch + bP
        keep_P_1 = kept_patches(keep_ptr_IP, image, place, nP, bP_1, MASKED)
        store_piece(
            gradient_desc_SIP_1,
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
        keep_P_2 = kept_patches(keep_ptr_IP, image, place_2, nP, bP_2, MASKED)
        store_piece(
            gradient_desc_SIP_2,
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


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def pool_backward_kernel(
    sentence_desc_SD,
    patch_desc_PD,
    patch_desc_PD_1,
    patch_desc_PD_2,
    gradient_desc_SIP,
    gradient_desc_SIP_1,
    gradient_desc_SIP_2,
    keep_ptr_IP,
    mask_ptr_IS,
    row_weights_ptr_FI,
    column_weights_ptr_FS,
    scale_parts_ptr_T,
    scale_ptr,
    slope,
    sharpness,
    storage_scale,
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
    """Computes the gradients of the patch-sentence similarities, and parts of the gradient of the scale.

    Program (j, i) takes the j-th tile of sentences and the i-th strip of `strip` images, and goes over the strip image
    by image. For each image it computes the similarities again, then the scores and their gradients, and from these the
    gradients of the similarities. All gradients contain the factor 2A, where A is the number of images that have a
    sentence.

    Reads:
        sentence_desc_SD, patch_desc_PD and its pieces, keep_ptr_IP: The same as for `pool_kernel`.
        mask_ptr_IS: uint8 [images, column_pitch], the bits of positives and excluded pairs.
        row_weights_ptr_FI, column_weights_ptr_FS: The fields of `GradientWeights` for images and for sentences,
            [fields, row_pitch] and [fields, column_pitch].
    Writes:
        gradient_desc_SIP and its pieces: The gradients of the similarities without the factor scale, multiplied by
            `storage_scale`, [sentences, images, patches].
        scale_parts_ptr_T: float32, the part of the gradient of the scale that each program has summed.
    """
    sentence = tl.program_id(0) * bS
    sentence_S = sentence + tl.arange(0, bS)
    inside_S = sentence_S < right
    scale = tl.load(scale_ptr)
    column_ptr_S = column_weights_ptr_FS + sentence_S
    column_peak_S = tl.load(column_ptr_S + PEAK * column_pitch, mask=inside_S, other=0.0)
    column_weight_S = tl.load(column_ptr_S + WEIGHT * column_pitch, mask=inside_S, other=0.0)
    column_positive_S = tl.load(column_ptr_S + POSITIVE * column_pitch, mask=inside_S, other=0.0)
    by_scale_S = tl.zeros([bS], tl.float32)
    begin = tl.program_id(1) * strip
    for image in tl.range(begin, tl.minimum(begin + strip, bottom)):
        # 1. The similarities and their sums, as in forward.
        peak_S, sum_exp2_S, weighted_S, z_SP, z_SP_1, z_SP_2 = image_sums(
            sentence_desc_SD,
            patch_desc_PD,
            patch_desc_PD_1,
            patch_desc_PD_2,
            keep_ptr_IP,
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
        # If no patch is kept, the similarities have no gradient.
        inverse_sum_S = tl.where(sum_exp2_S > 0.0, 1.0 / tl.where(sum_exp2_S > 0.0, sum_exp2_S, 1.0), 0.0)
        pooled_S = weighted_S * inverse_sum_S
        # 2. The gradient with respect to the scores, and its part of the gradient of the scale.
        mask_S = tl.load(mask_ptr_IS + tl.cast(image, tl.int64) * column_pitch + sentence_S, mask=inside_S, other=0)
        gradient_S = score_gradient(
            pooled_S * scale,
            image,
            mask_S,
            row_weights_ptr_FI,
            row_pitch,
            column_peak_S,
            column_weight_S,
            column_positive_S,
        )
        # Beyond the end the score is 0, which may lie far above the peak of the row.
        gradient_S = tl.where(inside_S, gradient_S, 0.0)
        by_scale_S += gradient_S * pooled_S

        # 3. The gradients with respect to the similarities. The gradient of the score is multiplied by
        # a (1 + sharpness (z - r)), which is e (constant + linear z).
        gradient_S *= inverse_sum_S * storage_scale
        linear_S = gradient_S * sharpness
        constant_S = gradient_S - linear_S * pooled_S
        shift_S = finite(peak_S) * slope
        if WINDOWS == 1:
            store_window(
                gradient_desc_SIP,
                gradient_desc_SIP_1,
                gradient_desc_SIP_2,
                keep_ptr_IP,
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
            # Registers hold one window, so each window is computed once more.
            for window in range(WINDOWS):
                patch = window * window_width(bP, bP_1, bP_2)
                again_SP, again_SP_1, again_SP_2 = similarities(
                    sentence_desc_SD,
                    patch_desc_PD,
                    patch_desc_PD_1,
                    patch_desc_PD_2,
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
                store_window(
                    gradient_desc_SIP,
                    gradient_desc_SIP_1,
                    gradient_desc_SIP_2,
                    keep_ptr_IP,
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
    tl.store(scale_parts_ptr_T + program, tl.sum(by_scale_S, 0))
