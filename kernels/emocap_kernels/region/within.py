r"""Computes the local loss within each image (scope `image`), as SPARC does (Bica et al. 2024, arXiv 2401.09865).

Each sentence \(u_n\) pools the patches of its own image. Its similarities with the kept patches are min-max normalised.
Normalised similarities below 1 / (number of kept patches) are set to zero. Then all are divided by their sum, which
gives the weights of the patches in the pooled vector \(c_n\). This vector is normalised to unit length. The score of
pooled vector n and sentence m of the same image is \(s_{nm} = \mathrm{scale}\,\langle c_n, u_m \rangle\). The loss is
the cross-entropy of each pooled vector with its own sentence, and of each sentence with its own pooled vector. It is
averaged over the sentences of an image, then over the images that own a sentence.

This module is the backend `chunked` of scope `image`. It is plain torch with autograd, so it has a second derivative.
The backend `reference` uses `pooled_patches` too. The loss does not compare sentences of different images, so ranks
exchange only sums.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from emocap_kernels.distributed.ranks import Partition, Ranks
from emocap_kernels.distributed.reductions import sum_of_parts, sum_over_ranks
from emocap_kernels.precision import compute_dtype, scale_tensor
from emocap_kernels.region.inputs import RegionInputs
from emocap_kernels.result import Directions, LossResult


def pooled_patches(patches: Tensor, sentences: Tensor, kept: Tensor | None) -> Tensor:
    """Returns the vectors of unit length that sentences pool from the patches of their image.

    If all patches are equally similar to a sentence, they get equal weights. If no patch of an image is kept, the
    result is a vector of zeros.

    Args:
        patches: [..., patches, width].
        sentences: [..., sentences, width].
        kept: Bool [..., patches], True for patches that are kept; None keeps all.

    Returns:
        [..., sentences, width].
    """
    similarity = sentences @ patches.mT
    smallest = largest = similarity
    least: Tensor | float = 1.0 / patches.shape[-2]
    dropped = None if kept is None else ~kept[..., None, :]
    if kept is not None and dropped is not None:
        smallest, largest = (
            similarity.masked_fill(dropped, float("inf")),
            similarity.masked_fill(dropped, float("-inf")),
        )
        least = 1.0 / kept.sum(-1).clamp(min=1)[..., None, None]
    low, high = smallest.amin(-1, keepdim=True), largest.amax(-1, keepdim=True)
    # Without a difference there is nothing to normalise, and every patch gets the share 1. This includes images of
    # which no patch is kept, where `low` is above `high`.
    flat = ~(high > low)
    share = ((similarity - low) / (high - low).masked_fill(flat, 1.0)).masked_fill(flat, 1.0)
    weight = share.masked_fill(share < least if dropped is None else dropped | (share < least), 0.0)
    total = weight.sum(-1, keepdim=True)
    # Without a kept patch the total is 0, and the weights are as well.
    return normalize((weight / total.masked_fill(total == 0.0, 1.0)) @ patches, dim=-1)


def evaluate(
    inputs: RegionInputs, image_partition: Partition, sentence_partition: Partition, ranks: Ranks
) -> LossResult:
    """Returns the local loss of scope `image`, which compares sentences only with patches of their own image.

    This is a collective: all ranks must call it. The ranks exchange only sums, such as those of the losses. Images that
    own equally many sentences are computed together, so no padding is needed. Memory is linear in the inputs.
    """
    dtype = compute_dtype(inputs.patches, inputs.sentences)
    patches, sentences = inputs.zeroed_patches().to(dtype), inputs.sentences.to(dtype)
    scale = scale_tensor(inputs.scale, patches, dtype)
    # `order` lists the sentences image by image, and those of image i begin at `starts[i]`.
    counts = torch.bincount(inputs.owner, minlength=image_partition.local)
    order = inputs.owner.sort(stable=True).indices
    starts = counts.cumsum(0) - counts
    # Exactly 0, with a graph to all inputs: a rank whose images own no sentence has a backward as well.
    losses = [scale.reshape(1)[:0].sum() + patches[:0].sum() + sentences[:0].sum()]
    to_text, to_image = losses[0], losses[0]
    hits = to_text.new_zeros(2, dtype=torch.float64)
    # Images that own equally many sentences are one group. On a GPU the host waits here for the different numbers.
    for number in counts.unique().tolist():
        if number == 0:
            continue
        group = (counts == number).nonzero()[:, 0]
        sentences_of = order[starts[group][:, None] + torch.arange(number, device=order.device)]
        kept = None if inputs.patch_mask is None else inputs.patch_mask[group]
        # The scores are [images, sentences, sentences].
        own = sentences[sentences_of]
        score = scale * (pooled_patches(patches[group], own, kept) @ own.mT)
        diagonal = torch.arange(number, device=order.device)
        to_text = to_text - score.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1).sum()
        to_image = to_image - score.log_softmax(1).diagonal(dim1=1, dim2=2).mean(1).sum()
        hits[0] += (score.detach().max(2).indices == diagonal).sum()
        hits[1] += (score.detach().max(1).indices == diagonal).sum()
    # The number of image anchors of all ranks must be known before the loss, so there are two exchanges.
    anchors = (counts > 0).sum()
    sums = sum_over_ranks(torch.cat([hits, anchors[None].double()]), ranks)
    both = sum_of_parts(torch.stack([to_text, to_image]) / sums[2].to(to_text.dtype), ranks)
    image_to_text, text_to_image = both.detach().unbind()
    recall = (sums[:2] / sentence_partition.total).to(both.dtype)
    return LossResult(
        loss=both.mean(),
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        positives=torch.ones_like(image_to_text),
        recall_at_1=Directions(recall[0], recall[1]),
    )
