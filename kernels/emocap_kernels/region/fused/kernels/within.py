r"""Contains the kernels of the local loss that compares sentences and patches of the same image only.

A program processes one image, in groups of at most `bK` of its sentences. The work is small: a few sentences are
compared with a few hundred patches, and their similarities stay in registers. Therefore the time depends on memory
traffic. For each group of sentences, forward loads the image's patches twice, and backward loads them three times.
Sentences are sorted by image, and a kernel reads the index of an image's first sentence from memory. Therefore images
may have different numbers of sentences without padding, and the host need not know these numbers.

Forward computes the similarities \(z\) of a sentence with the n kept patches of its image, and normalises them to
\(s = (z - \min) / (\max - \min)\). The weights of the patches are \(w_p \propto s_p\) where \(s_p \ge 1/n\), and
otherwise 0. The pooled vector is the weighted sum of the patches, divided by its length. Backward gets the gradient
\(g\) with respect to the pooled vector before this division. \(g\) is orthogonal to the pooled vector, so
\(\sum_p w_p \langle g, p \rangle = 0\). The gradient with respect to a weight before the division by the sum of weights
is therefore \(\langle g, p \rangle\) divided by that sum.

Vectors are loaded in pieces of `bD` elements. Earlier versions of the kernels loaded whole vectors of 512 elements into
a tile and spilled 1,200 to 4,000 loads (docs/log.md, 2026-11-23).
"""

# Triton has types of its own, which pyright does not know.
# pyright: basic, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

# Axes:  K own sentences of an image   M the same on the other side   P patches   D embedding   I images
#        N sentences of all images   F fields   L and R rows of either side of a product   b* size of a tile along *

# The fields of a sentence. IMAGE_* belong to its pooled vector as the anchor, TEXT_* to the sentence as the anchor.
# HIT is 1 if the best-scoring candidate is the own one.
IMAGE_LOSS = tl.constexpr(0)
TEXT_LOSS = tl.constexpr(1)
IMAGE_HIT = tl.constexpr(2)
TEXT_HIT = tl.constexpr(3)
IMAGE_LOG_SUM = tl.constexpr(4)
TEXT_LOG_SUM = tl.constexpr(5)
N_FIELDS = 6


@triton.jit
def load_rows(vectors_ptr_RD, row, end, d, nD, bR: tl.constexpr, bD: tl.constexpr):
    """Returns `bR` rows and `bD` columns of a matrix of vectors, from row `row` and column `d` on.

    Rows from `end` on are 0. The result is [bR, bD], in the type of the vectors.
    """
    row_R = row + tl.arange(0, bR)
    depth_D = d + tl.arange(0, bD)
    inside_RD = (row_R < end)[:, None] & (depth_D < nD)[None, :]
    place_RD = row_R[:, None].to(tl.int64) * nD + depth_D[None, :]
    return tl.load(vectors_ptr_RD + place_RD, mask=inside_RD, other=0.0)


@triton.jit
def store_rows(vectors_ptr_RD, row, end, d, nD, value_RD, bR: tl.constexpr, bD: tl.constexpr):
    """Writes `bR` rows and `bD` columns of a matrix of vectors, from row `row` and column `d` on.

    Rows from `end` on are not written. The values are converted to the type of the vectors.
    """
    row_R = row + tl.arange(0, bR)
    depth_D = d + tl.arange(0, bD)
    inside_RD = (row_R < end)[:, None] & (depth_D < nD)[None, :]
    place_RD = row_R[:, None].to(tl.int64) * nD + depth_D[None, :]
    tl.store(vectors_ptr_RD + place_RD, value_RD.to(vectors_ptr_RD.dtype.element_ty), mask=inside_RD)


@triton.jit
def products(
    left_ptr_LD,
    left,
    left_end,
    right_ptr_RD,
    right,
    right_end,
    nD,
    bL: tl.constexpr,
    bR: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Returns the dot products of `bL` rows of the left matrix with `bR` rows of the right matrix, float32 [bL, bR].

    The rows begin at `left` and `right`. Rows from `left_end` and from `right_end` on count as zeros. If the types of
    the matrices differ, half-precision vectors are converted to float32.
    """
    product_LR = tl.zeros([bL, bR], tl.float32)
    for d in range(0, nD, bD):
        left_LD = load_rows(left_ptr_LD, left, left_end, d, nD, bL, bD)
        right_RD = load_rows(right_ptr_RD, right, right_end, d, nD, bR, bD)
        if WIDEN or left_LD.dtype != right_RD.dtype:
            left_LD = left_LD.to(tl.float32)
            right_RD = right_RD.to(tl.float32)
        product_LR = tl.dot(left_LD, right_RD.T, product_LR, input_precision=PRECISION)
    return product_LR


@triton.jit
def kept_patches(keep_ptr_IP, image, nP, bP: tl.constexpr, MASKED: tl.constexpr):
    """Returns a mask of the kept patches, bool [1, bP], and 1 / n for n kept patches.

    A patch gets a weight of 0 if its normalised similarity is less than 1 / n.
    """
    patch_P = tl.arange(0, bP)
    keep_P = patch_P < nP
    if MASKED:
        keep_P = tl.load(keep_ptr_IP + tl.cast(image, tl.int64) * nP + patch_P, mask=keep_P, other=0) != 0
    number = tl.maximum(tl.sum(keep_P.to(tl.float32), 0), 1.0)
    return keep_P[None, :], 1.0 / number


@triton.jit
def normalise(z_KP, keep_P, low_K, high_K, min_share):
    """Returns the normalised similarities and a mask of the patches that get a weight, bool [bK, bP].

    Similarities between `low_K` and `high_K` are mapped to [0, 1]. If all similarities of a sentence are equal, its
    normalised similarities are 1. A kept patch gets a weight if its normalised similarity is at least `min_share`.
    """
    flat_K = high_K <= low_K
    range_K = tl.where(flat_K, 1.0, high_K - low_K)
    share_KP = tl.where(flat_K[:, None], 1.0, (z_KP - low_K[:, None]) / range_K[:, None])
    return share_KP, (share_KP >= min_share) & keep_P


@triton.jit
def bounds(z_KP, keep_P):
    """Returns the smallest and the largest similarity over the kept patches; both 0 if there is none."""
    low_K = tl.min(tl.where(keep_P, z_KP, float("inf")), 1)
    high_K = tl.max(tl.where(keep_P, z_KP, float("-inf")), 1)
    none_K = low_K > high_K
    return tl.where(none_K, 0.0, low_K), tl.where(none_K, 0.0, high_K)


@triton.jit
def pool_kernel(
    patches_ptr_IPD,
    keep_ptr_IP,
    sentences_ptr_ND,
    starts_ptr_I,
    pooled_ptr_ND,
    nP,
    nD,
    bK: tl.constexpr,
    bP: tl.constexpr,
    bD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Computes the pooled vectors of the sentences of one image, before they get unit length.

    Program i takes image i and its sentences [starts[i], starts[i + 1]), `bK` at a time. For each sentence it computes
    the similarities with all patches of the image, then the weights, then the pooled vector piece by piece.

    Reads:
        patches_ptr_IPD, sentences_ptr_ND: Vectors; sentences are sorted by image.
        keep_ptr_IP: With MASKED, uint8 [images, nP], 1 for patches that are kept.
    Writes:
        pooled_ptr_ND: float32 [sentences, nD].
    """
    image = tl.program_id(0)
    begin = tl.load(starts_ptr_I + image)
    end = tl.load(starts_ptr_I + image + 1)
    first = tl.cast(image, tl.int64) * nP * nD
    keep_P, min_share = kept_patches(keep_ptr_IP, image, nP, bP, MASKED)
    for sentence in range(begin, end, bK):
        z_KP = products(
            sentences_ptr_ND, sentence, end, patches_ptr_IPD + first, 0, nP, nD, bK, bP, bD, PRECISION, WIDEN
        )
        low_K, high_K = bounds(z_KP, keep_P)
        share_KP, active_KP = normalise(z_KP, keep_P, low_K, high_K, min_share)
        weight_KP = tl.where(active_KP, share_KP, 0.0)
        sum_K = tl.sum(weight_KP, 1)
        weight_KP = weight_KP / tl.where(sum_K > 0.0, sum_K, 1.0)[:, None]
        # The second reading of the patches. The weights are float32, so the patches are converted as well.
        for d in range(0, nD, bD):
            patch_PD = load_rows(patches_ptr_IPD + first, 0, nP, d, nD, bP, bD).to(tl.float32)
            pooled_KD = tl.dot(weight_KP, patch_PD, input_precision=PRECISION)
            store_rows(pooled_ptr_ND, sentence, end, d, nD, pooled_KD, bK, bD)


@triton.jit
def direction(
    anchors_ptr_ND,
    candidates_ptr_ND,
    scale,
    begin,
    end,
    anchor,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes the losses of `bK` anchors against all candidates of their image, for one direction of the loss.

    The anchors begin at row `anchor`, and the candidates are the rows [begin, end). The own candidate of an anchor has
    the same index. Returns three tensors, [bK] each: the losses; the hits, 1.0 if the own candidate is the best, else
    0.0; and the log-sum-exps of the scores.
    """
    anchor_K = anchor + tl.arange(0, bK)
    peak_K = tl.full([bK], float("-inf"), tl.float32)
    before_K = tl.full([bK], float("-inf"), tl.float32)
    sum_K = tl.zeros([bK], tl.float32)
    own_K = tl.zeros([bK], tl.float32)
    for candidate in range(begin, end, bK):
        candidate_M = candidate + tl.arange(0, bK)
        score_KM = scale * products(
            anchors_ptr_ND, anchor, end, candidates_ptr_ND, candidate, end, nD, bK, bK, bD, PRECISION, False
        )
        score_KM = tl.where((candidate_M < end)[None, :], score_KM, float("-inf"))
        own_K += tl.sum(tl.where(anchor_K[:, None] == candidate_M[None, :], score_KM, 0.0), 1)
        # Of equal scores the lower index wins.
        ahead_KM = candidate_M[None, :] < anchor_K[:, None]
        before_K = tl.maximum(before_K, tl.max(tl.where(ahead_KM, score_KM, float("-inf")), 1))
        new_K = tl.maximum(peak_K, tl.max(score_KM, 1))
        sum_K = sum_K * tl.exp(peak_K - new_K) + tl.sum(tl.exp(score_KM - new_K[:, None]), 1)
        peak_K = new_K
    hit_K = (own_K == peak_K) & (own_K > before_K)
    # The peak and the own score are subtracted first, because both may be large and nearly equal.
    log_K = tl.log(sum_K)
    return (peak_K - own_K) + log_K, hit_K.to(tl.float32), peak_K + log_K


@triton.jit(do_not_specialize=["n_sentences"])
def loss_kernel(
    unit_ptr_ND,
    sentences_ptr_ND,
    starts_ptr_I,
    scale_ptr,
    fields_ptr_FN,
    n_sentences,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes the losses of the sentences of one image, for both directions.

    Program i takes image i, and `bK` of its sentences at a time. First their pooled vectors are the anchors, and then
    the sentences themselves are.

    Reads:
        unit_ptr_ND: float32 [sentences, nD], pooled vectors of unit length.
        sentences_ptr_ND: Sentences, sorted by image.
    Writes:
        fields_ptr_FN: float32 [N_FIELDS, n_sentences], the losses, hits and log-sum-exps of both directions.
    """
    image = tl.program_id(0)
    begin = tl.load(starts_ptr_I + image)
    end = tl.load(starts_ptr_I + image + 1)
    scale = tl.load(scale_ptr)
    for anchor in range(begin, end, bK):
        anchor_K = anchor + tl.arange(0, bK)
        inside_K = anchor_K < end
        loss_K, hit_K, log_K = direction(
            unit_ptr_ND, sentences_ptr_ND, scale, begin, end, anchor, nD, bK, bD, PRECISION
        )
        tl.store(fields_ptr_FN + IMAGE_LOSS * n_sentences + anchor_K, loss_K, mask=inside_K)
        tl.store(fields_ptr_FN + IMAGE_HIT * n_sentences + anchor_K, hit_K, mask=inside_K)
        tl.store(fields_ptr_FN + IMAGE_LOG_SUM * n_sentences + anchor_K, log_K, mask=inside_K)
        loss_K, hit_K, log_K = direction(
            sentences_ptr_ND, unit_ptr_ND, scale, begin, end, anchor, nD, bK, bD, PRECISION
        )
        tl.store(fields_ptr_FN + TEXT_LOSS * n_sentences + anchor_K, loss_K, mask=inside_K)
        tl.store(fields_ptr_FN + TEXT_HIT * n_sentences + anchor_K, hit_K, mask=inside_K)
        tl.store(fields_ptr_FN + TEXT_LOG_SUM * n_sentences + anchor_K, log_K, mask=inside_K)


@triton.jit
def log_sums(fields_ptr_FN, field: tl.constexpr, n_sentences, sentence, end, bK: tl.constexpr):
    """Returns the log-sum-exps, stored as `field`, of `bK` sentences from index `sentence` on, [bK].

    Sentences from index `end` on get 0.
    """
    sentence_K = sentence + tl.arange(0, bK)
    return tl.load(fields_ptr_FN + field * n_sentences + sentence_K, mask=sentence_K < end, other=0.0)


@triton.jit
def score_gradient(cosine_KM, scale, log_K, log_M, anchor, other, end, bK: tl.constexpr):
    """Returns the gradient of the sum of all losses with respect to one tile of the scores of an image, [bK, bK].

    The rows of the tile are the pooled vectors and its columns the sentences, or the other way round. `anchor` and
    `other` are the indices of the first row and the first column. Indices from `end` on are beyond the image and get
    the gradient 0. `log_K` are the log-sum-exps of the rows as anchors, and `log_M` those of the columns as anchors.
    """
    anchor_K = anchor + tl.arange(0, bK)
    other_M = other + tl.arange(0, bK)
    inside_KM = (anchor_K < end)[:, None] & (other_M < end)[None, :]
    score_KM = tl.where(inside_KM, cosine_KM * scale, float("-inf"))
    own_KM = inside_KM & (anchor_K[:, None] == other_M[None, :])
    gradient_KM = tl.exp(score_KM - log_K[:, None]) + tl.exp(score_KM - log_M[None, :])
    return gradient_KM - tl.where(own_KM, 2.0, 0.0)


@triton.jit
def add_products(
    sums_ptr_ND,
    row,
    gradient_KM,
    vectors_ptr_RD,
    other,
    begin,
    end,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the product of `gradient_KM` and `bK` rows of vectors to the stored sums, piece by piece.

    The sums begin at row `row`, and the vectors at row `other`. If `other` is equal to `begin`, the vectors are the
    first ones of the image, and the product replaces the stored sums.
    """
    for d in range(0, nD, bD):
        other_MD = load_rows(vectors_ptr_RD, other, end, d, nD, bK, bD).to(tl.float32)
        sum_KD = tl.zeros([bK, bD], tl.float32)
        if other > begin:
            sum_KD = load_rows(sums_ptr_ND, row, end, d, nD, bK, bD)
        sum_KD = tl.dot(gradient_KM, other_MD, sum_KD, input_precision=PRECISION)
        store_rows(sums_ptr_ND, row, end, d, nD, sum_KD, bK, bD)


@triton.jit(do_not_specialize=["n_sentences"])
def score_gradient_kernel(
    unit_ptr_ND,
    sentences_ptr_ND,
    starts_ptr_I,
    scale_ptr,
    fields_ptr_FN,
    by_unit_ptr_ND,
    by_sentence_ptr_ND,
    by_scale_ptr_N,
    n_sentences,
    nD,
    bK: tl.constexpr,
    bD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes the gradients of the sum of all losses of one image with respect to the three inputs of its scores.

    The inputs are the pooled vectors of unit length, the sentences and the scale. The sentences also change the pooled
    vectors; `pool_backward_kernel` later adds this part of their gradients.

    Program i takes image i. The scores are computed twice, once with pooled vectors and once with sentences as rows.

    Reads:
        unit_ptr_ND, sentences_ptr_ND: The same as for `loss_kernel`.
        fields_ptr_FN: The fields that `loss_kernel` wrote.
    Writes:
        by_unit_ptr_ND, by_sentence_ptr_ND: float32 [sentences, nD], the gradients with respect to the unit pooled
            vectors and to the sentences. Both gradients lack the factor scale. The kernel goes over the candidates of
            an anchor in tiles. For each tile after the first, it reads the stored sums, adds the contribution of the
            tile, and writes them back.
        by_scale_ptr_N: float32 [sentences], the part of the gradient of the scale that belongs to each sentence.
    """
    image = tl.program_id(0)
    begin = tl.load(starts_ptr_I + image)
    end = tl.load(starts_ptr_I + image + 1)
    scale = tl.load(scale_ptr)
    for anchor in range(begin, end, bK):
        image_log_K = log_sums(fields_ptr_FN, IMAGE_LOG_SUM, n_sentences, anchor, end, bK)
        text_log_K = log_sums(fields_ptr_FN, TEXT_LOG_SUM, n_sentences, anchor, end, bK)
        by_scale_K = tl.zeros([bK], tl.float32)
        for other in range(begin, end, bK):
            image_log_M = log_sums(fields_ptr_FN, IMAGE_LOG_SUM, n_sentences, other, end, bK)
            text_log_M = log_sums(fields_ptr_FN, TEXT_LOG_SUM, n_sentences, other, end, bK)
            # 1. Pooled vectors as rows: their gradient, and all of the gradient of the scale.
            cosine_KM = products(
                unit_ptr_ND, anchor, end, sentences_ptr_ND, other, end, nD, bK, bK, bD, PRECISION, False
            )
            gradient_KM = score_gradient(cosine_KM, scale, image_log_K, text_log_M, anchor, other, end, bK)
            by_scale_K += tl.sum(gradient_KM * cosine_KM, 1)
            add_products(
                by_unit_ptr_ND, anchor, gradient_KM, sentences_ptr_ND, other, begin, end, nD, bK, bD, PRECISION
            )
            # 2. Sentences as rows, for their gradient.
            cosine_KM = products(
                sentences_ptr_ND, anchor, end, unit_ptr_ND, other, end, nD, bK, bK, bD, PRECISION, False
            )
            gradient_KM = score_gradient(cosine_KM, scale, text_log_K, image_log_M, anchor, other, end, bK)
            add_products(by_sentence_ptr_ND, anchor, gradient_KM, unit_ptr_ND, other, begin, end, nD, bK, bD, PRECISION)
            # The next candidates add to what other threads of the program wrote here.
            tl.debug_barrier()
        anchor_K = anchor + tl.arange(0, bK)
        tl.store(by_scale_ptr_N + anchor_K, by_scale_K, mask=anchor_K < end)


@triton.jit
def similarity_gradient(z_KP, by_weight_KP, keep_P, min_share):
    """Returns the gradient with respect to the similarities z, and the weights of the patches, both [bK, bP].

    `by_weight_KP` is the gradient with respect to the weights. For each sentence, the sum of weight times gradient over
    the patches must be 0.
    """
    low_K, high_K = bounds(z_KP, keep_P)
    share_KP, active_KP = normalise(z_KP, keep_P, low_K, high_K, min_share)
    weight_KP = tl.where(active_KP, share_KP, 0.0)
    sum_K = tl.sum(weight_KP, 1)
    part_K = 1.0 / tl.where(sum_K > 0.0, sum_K, 1.0)
    by_share_KP = tl.where(active_KP, by_weight_KP * part_K[:, None], 0.0)
    flat_K = high_K <= low_K
    slope_K = tl.where(flat_K, 0.0, 1.0 / tl.where(flat_K, 1.0, high_K - low_K))
    # Patches that share the smallest or the largest similarity divide its gradient equally, as in torch's amin.
    lowest_KP = (z_KP == low_K[:, None]) & keep_P
    highest_KP = (z_KP == high_K[:, None]) & keep_P
    by_low_K = tl.sum(by_share_KP * (share_KP - 1.0), 1) / tl.maximum(tl.sum(lowest_KP.to(tl.float32), 1), 1.0)
    by_high_K = -tl.sum(by_share_KP * share_KP, 1) / tl.maximum(tl.sum(highest_KP.to(tl.float32), 1), 1.0)
    by_z_KP = by_share_KP + tl.where(lowest_KP, by_low_K[:, None], 0.0) + tl.where(highest_KP, by_high_K[:, None], 0.0)
    return by_z_KP * slope_K[:, None], weight_KP * part_K[:, None]


@triton.jit
def pool_backward_kernel(
    patches_ptr_IPD,
    keep_ptr_IP,
    sentences_ptr_ND,
    starts_ptr_I,
    by_pooled_ptr_ND,
    by_patch_ptr_IPD,
    by_sentence_ptr_ND,
    nP,
    nD,
    bK: tl.constexpr,
    bP: tl.constexpr,
    bD: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Computes the gradients of patches and sentences from those of the pooled vectors.

    Program i takes image i, and its sentences `bK` at a time. It computes their similarities and weights again.

    Reads:
        patches_ptr_IPD, sentences_ptr_ND, keep_ptr_IP: The same as for `pool_kernel`.
        by_pooled_ptr_ND: float32 [sentences, nD], gradients of the pooled vectors before they got unit length.
    Writes:
        by_patch_ptr_IPD: The gradients of the patches, in the type of the patches; zeros for an image without a
            sentence. If an image has more than `bK` sentences, the sum is rounded to that type after each `bK` of them.
        by_sentence_ptr_ND: float32. The kernel adds to the gradients that `score_gradient_kernel` wrote.
    """
    image = tl.program_id(0)
    begin = tl.load(starts_ptr_I + image)
    end = tl.load(starts_ptr_I + image + 1)
    first = tl.cast(image, tl.int64) * nP * nD
    keep_P, min_share = kept_patches(keep_ptr_IP, image, nP, bP, MASKED)
    # The host does not initialise the gradient of the patches.
    if begin == end:
        for d in range(0, nD, bD):
            store_rows(by_patch_ptr_IPD + first, 0, nP, d, nD, tl.zeros([bP, bD], tl.float32), bP, bD)
    for sentence in range(begin, end, bK):
        # 1. The similarities again, and the gradients of the weights: the products of patches with the gradients of the
        # pooled vectors.
        z_KP = products(
            sentences_ptr_ND, sentence, end, patches_ptr_IPD + first, 0, nP, nD, bK, bP, bD, PRECISION, WIDEN
        )
        by_weight_KP = products(
            by_pooled_ptr_ND, sentence, end, patches_ptr_IPD + first, 0, nP, nD, bK, bP, bD, PRECISION, WIDEN
        )
        # 2. The gradient of the similarities goes to both of their factors. That of a pooled vector also goes to the
        # patches directly, multiplied by their weights.
        by_z_KP, weight_KP = similarity_gradient(z_KP, by_weight_KP, keep_P, min_share)
        for d in range(0, nD, bD):
            patch_PD = load_rows(patches_ptr_IPD + first, 0, nP, d, nD, bP, bD).to(tl.float32)
            u_KD = load_rows(sentences_ptr_ND, sentence, end, d, nD, bK, bD).to(tl.float32)
            g_KD = load_rows(by_pooled_ptr_ND, sentence, end, d, nD, bK, bD)
            by_sentence_KD = load_rows(by_sentence_ptr_ND, sentence, end, d, nD, bK, bD)
            by_sentence_KD = tl.dot(by_z_KP, patch_PD, by_sentence_KD, input_precision=PRECISION)
            store_rows(by_sentence_ptr_ND, sentence, end, d, nD, by_sentence_KD, bK, bD)
            by_patch_PD = tl.zeros([bP, bD], tl.float32)
            # The first sentences of an image begin the sum, so the memory need not be initialised.
            if sentence > begin:
                by_patch_PD = load_rows(by_patch_ptr_IPD + first, 0, nP, d, nD, bP, bD).to(tl.float32)
            by_patch_PD = tl.dot(tl.trans(weight_KP), g_KD, by_patch_PD, input_precision=PRECISION)
            by_patch_PD = tl.dot(tl.trans(by_z_KP), u_KD, by_patch_PD, input_precision=PRECISION)
            store_rows(by_patch_ptr_IPD + first, 0, nP, d, nD, by_patch_PD, bP, bD)
        # The next sentences add to what other threads of the program wrote here.
        tl.debug_barrier()
