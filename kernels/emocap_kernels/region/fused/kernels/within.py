r"""The local loss within one image: a program takes one image and its own sentences, a few at a time.

Nothing here is large: a few sentences against a few hundred patches, whose similarities lie in registers, so what
counts is that each patch is read from memory twice on either way, and that no image waits for another. Sentences lie
sorted by image; where those of an image begin is read from memory, so ragged numbers need neither padding nor the host.

Forward: similarities \(z\), their smallest and largest over the kept patches, weights
\(w_p \propto s_p [s_p \ge 1/n]\) of the normalised similarity \(s = (z - \min) / (\max - \min)\), and the unit pooled
vector \(c\). Backward knows the gradient \(g\) in the pooled vector before it got unit length; being orthogonal to that
vector, it has \(\sum_p w_p \langle g, p \rangle = 0\), so the gradient in a weight before the division by their sum is
just \(\langle g, p \rangle\) over that sum.
"""

# Triton has its own types.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# Dimension key:  K own sentences of an image   M as K, on the other side   P patches   D embedding   b* of a tile

# Lines of a sentence's two anchors: the pooled vector's and its own.
IMAGE_LOSS = tl.constexpr(0)
TEXT_LOSS = tl.constexpr(1)
IMAGE_FOUND = tl.constexpr(2)
TEXT_FOUND = tl.constexpr(3)
IMAGE_LOG_SUM = tl.constexpr(4)
TEXT_LOG_SUM = tl.constexpr(5)
LINES = 6


@triton.jit
def strip_of(vectors_ptr, row, end, d, nD, bR: tl.constexpr, bD: tl.constexpr):
    """A strip of `bR` rows from `row` on, [bR, bD] in the type of the vectors; 0 from `end` on."""
    row_R = row + tl.arange(0, bR)
    depth_D = d + tl.arange(0, bD)
    inside_RD = (row_R < end)[:, None] & (depth_D < nD)[None, :]
    place_RD = row_R[:, None].to(tl.int64) * nD + depth_D[None, :]
    return tl.load(vectors_ptr + place_RD, mask=inside_RD, other=0.0)


@triton.jit
def put_strip(vectors_ptr, row, end, d, nD, value_RD, bR: tl.constexpr, bD: tl.constexpr):
    row_R = row + tl.arange(0, bR)
    depth_D = d + tl.arange(0, bD)
    inside_RD = (row_R < end)[:, None] & (depth_D < nD)[None, :]
    place_RD = row_R[:, None].to(tl.int64) * nD + depth_D[None, :]
    tl.store(vectors_ptr + place_RD, value_RD.to(vectors_ptr.dtype.element_ty), mask=inside_RD)


@triton.jit
def products(
    left_ptr,
    left,
    left_end,
    right_ptr,
    right,
    right_end,
    nD,
    bL: tl.constexpr,
    bR: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Of `bL` rows of the left side and `bR` of the right one, float32; a half is widened if the sides differ."""
    product_LR = tl.zeros([bL, bR], tl.float32)
    for d in range(0, nD, bD):
        left_LD = strip_of(left_ptr, left, left_end, d, nD, bL, bD)
        right_RD = strip_of(right_ptr, right, right_end, d, nD, bR, bD)
        if WIDEN or left_LD.dtype != right_RD.dtype:
            left_LD = left_LD.to(tl.float32)
            right_RD = right_RD.to(tl.float32)
        product_LR = tl.dot(left_LD, right_RD.T, product_LR, input_precision=PRECISION)
    return product_LR


@triton.jit
def kept(keep_ptr, image, nP, bP: tl.constexpr, MASKED: tl.constexpr):
    """Which patches of an image take part, bool [1, bP], and the least share of one that weighs anything."""
    patch_P = tl.arange(0, bP)
    keep_P = patch_P < nP
    if MASKED:
        keep_P = tl.load(keep_ptr + tl.cast(image, tl.int64) * nP + patch_P, mask=keep_P, other=0) != 0
    number = tl.maximum(tl.sum(keep_P.to(tl.float32), 0), 1.0)
    return keep_P[None, :], 1.0 / number


@triton.jit
def shares_of(z_KP, keep_P, low_K, high_K, least):
    """Normalised similarities, 1 where all are equal, and whether a patch weighs anything."""
    flat_K = high_K <= low_K
    range_K = tl.where(flat_K, 1.0, high_K - low_K)
    share_KP = tl.where(flat_K[:, None], 1.0, (z_KP - low_K[:, None]) / range_K[:, None])
    return share_KP, (share_KP >= least) & keep_P


@triton.jit
def bounds(z_KP, keep_P):
    """The smallest and the largest similarity over the kept patches; both 0 if there is none."""
    low_K = tl.min(tl.where(keep_P, z_KP, float("inf")), 1)
    high_K = tl.max(tl.where(keep_P, z_KP, float("-inf")), 1)
    none_K = low_K > high_K
    return tl.where(none_K, 0.0, low_K), tl.where(none_K, 0.0, high_K)


@triton.jit
def pool_kernel(
    patches_ptr,
    keep_ptr,
    sentences_ptr,
    starts_ptr,
    pooled_ptr,
    nP,
    nD,
    bK: tl.constexpr,
    bP: tl.constexpr,
    bD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Pooled vectors, float32 [sentences, nD]."""
    image = tl.program_id(0)
    begin = tl.load(starts_ptr + image)
    end = tl.load(starts_ptr + image + 1)
    first = tl.cast(image, tl.int64) * nP * nD
    keep_P, least = kept(keep_ptr, image, nP, bP, MASKED)
    for sentence in range(begin, end, bK):
        z_KP = products(sentences_ptr, sentence, end, patches_ptr + first, 0, nP, nD, bK, bP, bD, PRECISION, WIDEN)
        low_K, high_K = bounds(z_KP, keep_P)
        share_KP, active_KP = shares_of(z_KP, keep_P, low_K, high_K, least)
        weight_KP = tl.where(active_KP, share_KP, 0.0)
        total_K = tl.sum(weight_KP, 1)
        weight_KP = weight_KP / tl.where(total_K > 0.0, total_K, 1.0)[:, None]
        for d in range(0, nD, bD):
            patch_PD = strip_of(patches_ptr + first, 0, nP, d, nD, bP, bD).to(tl.float32)
            pooled_KD = tl.dot(weight_KP, patch_PD, input_precision=PRECISION)
            put_strip(pooled_ptr, sentence, end, d, nD, pooled_KD, bK, bD)


@triton.jit
def direction(
    anchors_ptr,
    candidates_ptr,
    scale,
    begin,
    end,
    anchor,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of `bK` anchors among the candidates of their image: loss, whether the own one is best, log of the sum."""
    anchor_K = anchor + tl.arange(0, bK)
    peak_K = tl.full([bK], float("-inf"), tl.float32)
    before_K = tl.full([bK], float("-inf"), tl.float32)
    total_K = tl.zeros([bK], tl.float32)
    own_K = tl.zeros([bK], tl.float32)
    for candidate in range(begin, end, bK):
        candidate_M = candidate + tl.arange(0, bK)
        score_KM = scale * products(
            anchors_ptr, anchor, end, candidates_ptr, candidate, end, nD, bK, bK, bD, PRECISION, False
        )
        score_KM = tl.where((candidate_M < end)[None, :], score_KM, float("-inf"))
        own_K += tl.sum(tl.where(anchor_K[:, None] == candidate_M[None, :], score_KM, 0.0), 1)
        # Of equal scores the lower index wins.
        ahead_KM = candidate_M[None, :] < anchor_K[:, None]
        before_K = tl.maximum(before_K, tl.max(tl.where(ahead_KM, score_KM, float("-inf")), 1))
        new_K = tl.maximum(peak_K, tl.max(score_KM, 1))
        total_K = total_K * tl.exp(peak_K - new_K) + tl.sum(tl.exp(score_KM - new_K[:, None]), 1)
        peak_K = new_K
    found_K = (own_K == peak_K) & (own_K > before_K)
    log_K = tl.log(total_K)
    return (peak_K - own_K) + log_K, found_K.to(tl.float32), peak_K + log_K


@triton.jit(do_not_specialize=["n_sentences"])
def contrast_kernel(
    unit_ptr,
    sentences_ptr,
    starts_ptr,
    scale_ptr,
    lines_ptr,
    n_sentences,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Losses of the sentences of one image, of both directions, [LINES, sentences]; `unit` are pooled vectors."""
    image = tl.program_id(0)
    begin = tl.load(starts_ptr + image)
    end = tl.load(starts_ptr + image + 1)
    scale = tl.load(scale_ptr)
    for anchor in range(begin, end, bK):
        anchor_K = anchor + tl.arange(0, bK)
        inside_K = anchor_K < end
        loss_K, found_K, log_K = direction(unit_ptr, sentences_ptr, scale, begin, end, anchor, nD, bK, bD, PRECISION)
        tl.store(lines_ptr + IMAGE_LOSS * n_sentences + anchor_K, loss_K, mask=inside_K)
        tl.store(lines_ptr + IMAGE_FOUND * n_sentences + anchor_K, found_K, mask=inside_K)
        tl.store(lines_ptr + IMAGE_LOG_SUM * n_sentences + anchor_K, log_K, mask=inside_K)
        loss_K, found_K, log_K = direction(sentences_ptr, unit_ptr, scale, begin, end, anchor, nD, bK, bD, PRECISION)
        tl.store(lines_ptr + TEXT_LOSS * n_sentences + anchor_K, loss_K, mask=inside_K)
        tl.store(lines_ptr + TEXT_FOUND * n_sentences + anchor_K, found_K, mask=inside_K)
        tl.store(lines_ptr + TEXT_LOG_SUM * n_sentences + anchor_K, log_K, mask=inside_K)


@triton.jit
def log_sums(lines_ptr, line: tl.constexpr, n_sentences, sentence, end, bK: tl.constexpr):
    sentence_K = sentence + tl.arange(0, bK)
    return tl.load(lines_ptr + line * n_sentences + sentence_K, mask=sentence_K < end, other=0.0)


@triton.jit
def score_gradient(cosine_KM, scale, log_K, log_M, anchor, other, end, bK: tl.constexpr):
    """Of the sum of all losses in the scores of anchors and candidates of one image, either side as rows."""
    anchor_K = anchor + tl.arange(0, bK)
    other_M = other + tl.arange(0, bK)
    inside_KM = (anchor_K < end)[:, None] & (other_M < end)[None, :]
    score_KM = tl.where(inside_KM, cosine_KM * scale, float("-inf"))
    own_KM = inside_KM & (anchor_K[:, None] == other_M[None, :])
    gradient_KM = tl.exp(score_KM - log_K[:, None]) + tl.exp(score_KM - log_M[None, :])
    return gradient_KM - tl.where(own_KM, 2.0, 0.0)


@triton.jit
def add_products(
    sums_ptr,
    row,
    gradient_KM,
    vectors_ptr,
    other,
    begin,
    end,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient @ vectors, onto what was stored for the candidates before; strip by strip."""
    for d in range(0, nD, bD):
        other_MD = strip_of(vectors_ptr, other, end, d, nD, bK, bD).to(tl.float32)
        sum_KD = tl.zeros([bK, bD], tl.float32)
        if other > begin:
            sum_KD = strip_of(sums_ptr, row, end, d, nD, bK, bD)
        sum_KD = tl.dot(gradient_KM, other_MD, sum_KD, input_precision=PRECISION)
        put_strip(sums_ptr, row, end, d, nD, sum_KD, bK, bD)


@triton.jit(do_not_specialize=["n_sentences"])
def score_gradient_kernel(
    unit_ptr,
    sentences_ptr,
    starts_ptr,
    scale_ptr,
    lines_ptr,
    by_unit_ptr,
    by_sentence_ptr,
    by_scale_ptr,
    n_sentences,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of the sum of all losses: in unit pooled vectors and sentences over scale, float32 [sentences, nD], and in scale.

    The scores are made twice, once with pooled vectors and once with sentences as rows.
    """
    image = tl.program_id(0)
    begin = tl.load(starts_ptr + image)
    end = tl.load(starts_ptr + image + 1)
    scale = tl.load(scale_ptr)
    for anchor in range(begin, end, bK):
        image_log_K = log_sums(lines_ptr, IMAGE_LOG_SUM, n_sentences, anchor, end, bK)
        text_log_K = log_sums(lines_ptr, TEXT_LOG_SUM, n_sentences, anchor, end, bK)
        by_scale_K = tl.zeros([bK], tl.float32)
        for other in range(begin, end, bK):
            image_log_M = log_sums(lines_ptr, IMAGE_LOG_SUM, n_sentences, other, end, bK)
            text_log_M = log_sums(lines_ptr, TEXT_LOG_SUM, n_sentences, other, end, bK)
            cosine_KM = products(unit_ptr, anchor, end, sentences_ptr, other, end, nD, bK, bK, bD, PRECISION, False)
            gradient_KM = score_gradient(cosine_KM, scale, image_log_K, text_log_M, anchor, other, end, bK)
            by_scale_K += tl.sum(gradient_KM * cosine_KM, 1)
            add_products(by_unit_ptr, anchor, gradient_KM, sentences_ptr, other, begin, end, nD, bK, bD, PRECISION)
            cosine_KM = products(sentences_ptr, anchor, end, unit_ptr, other, end, nD, bK, bK, bD, PRECISION, False)
            gradient_KM = score_gradient(cosine_KM, scale, text_log_K, image_log_M, anchor, other, end, bK)
            add_products(by_sentence_ptr, anchor, gradient_KM, unit_ptr, other, begin, end, nD, bK, bD, PRECISION)
            # Other threads of the program read what these wrote.
            tl.debug_barrier()
        anchor_K = anchor + tl.arange(0, bK)
        tl.store(by_scale_ptr + anchor_K, by_scale_K, mask=anchor_K < end)


@triton.jit
def similarity_gradient(z_KP, by_weight_KP, keep_P, least):
    """(gradient in z, weight) from the gradient in the weights, whose weighted sum over patches is 0."""
    low_K, high_K = bounds(z_KP, keep_P)
    share_KP, active_KP = shares_of(z_KP, keep_P, low_K, high_K, least)
    weight_KP = tl.where(active_KP, share_KP, 0.0)
    total_K = tl.sum(weight_KP, 1)
    part_K = 1.0 / tl.where(total_K > 0.0, total_K, 1.0)
    by_share_KP = tl.where(active_KP, by_weight_KP * part_K[:, None], 0.0)
    flat_K = high_K <= low_K
    slope_K = tl.where(flat_K, 0.0, 1.0 / tl.where(flat_K, 1.0, high_K - low_K))
    # Patches that share the smallest or the largest similarity share its gradient.
    lowest_KP = (z_KP == low_K[:, None]) & keep_P
    highest_KP = (z_KP == high_K[:, None]) & keep_P
    by_low_K = tl.sum(by_share_KP * (share_KP - 1.0), 1) / tl.maximum(tl.sum(lowest_KP.to(tl.float32), 1), 1.0)
    by_high_K = -tl.sum(by_share_KP * share_KP, 1) / tl.maximum(tl.sum(highest_KP.to(tl.float32), 1), 1.0)
    by_z_KP = by_share_KP + tl.where(lowest_KP, by_low_K[:, None], 0.0) + tl.where(highest_KP, by_high_K[:, None], 0.0)
    return by_z_KP * slope_K[:, None], weight_KP * part_K[:, None]


@triton.jit
def carry_kernel(
    patches_ptr,
    keep_ptr,
    sentences_ptr,
    starts_ptr,
    by_pooled_ptr,
    by_patch_ptr,
    by_sentence_ptr,
    nP,
    nD,
    bK: tl.constexpr,
    bP: tl.constexpr,
    bD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """From gradients in the pooled vectors, float32 [sentences, nD], into patches, and into sentences on top."""
    image = tl.program_id(0)
    begin = tl.load(starts_ptr + image)
    end = tl.load(starts_ptr + image + 1)
    first = tl.cast(image, tl.int64) * nP * nD
    keep_P, least = kept(keep_ptr, image, nP, bP, MASKED)
    if begin == end:
        for d in range(0, nD, bD):
            put_strip(by_patch_ptr + first, 0, nP, d, nD, tl.zeros([bP, bD], tl.float32), bP, bD)
    for sentence in range(begin, end, bK):
        z_KP = products(sentences_ptr, sentence, end, patches_ptr + first, 0, nP, nD, bK, bP, bD, PRECISION, WIDEN)
        by_weight_KP = products(
            by_pooled_ptr, sentence, end, patches_ptr + first, 0, nP, nD, bK, bP, bD, PRECISION, WIDEN
        )
        by_z_KP, weight_KP = similarity_gradient(z_KP, by_weight_KP, keep_P, least)
        for d in range(0, nD, bD):
            patch_PD = strip_of(patches_ptr + first, 0, nP, d, nD, bP, bD).to(tl.float32)
            u_KD = strip_of(sentences_ptr, sentence, end, d, nD, bK, bD).to(tl.float32)
            g_KD = strip_of(by_pooled_ptr, sentence, end, d, nD, bK, bD)
            by_sentence_KD = strip_of(by_sentence_ptr, sentence, end, d, nD, bK, bD)
            by_sentence_KD = tl.dot(by_z_KP, patch_PD, by_sentence_KD, input_precision=PRECISION)
            put_strip(by_sentence_ptr, sentence, end, d, nD, by_sentence_KD, bK, bD)
            by_patch_PD = tl.zeros([bP, bD], tl.float32)
            if sentence > begin:
                by_patch_PD = strip_of(by_patch_ptr + first, 0, nP, d, nD, bP, bD).to(tl.float32)
            by_patch_PD = tl.dot(tl.trans(weight_KP), g_KD, by_patch_PD, input_precision=PRECISION)
            by_patch_PD = tl.dot(tl.trans(by_z_KP), u_KD, by_patch_PD, input_precision=PRECISION)
            put_strip(by_patch_ptr + first, 0, nP, d, nD, by_patch_PD, bP, bD)
        # Other threads of the program read what these wrote.
        tl.debug_barrier()
