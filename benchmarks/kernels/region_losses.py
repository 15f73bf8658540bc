"""Implements losses of patches and sentences in plain PyTorch.

`dense` is our local loss. The other functions compare images with sentences as other papers do, but without the learned
projections of these papers.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .batches import SHARPNESS, Regions
from .subject import Size

_FLOAT_BYTES = 4
# The matrices that autograd holds in float32: similarities, weights and their gradients; as many for pooled vectors.
_DENSE_MATRICES = 5
_POOLED_MATRICES = 5
# The number of similarities of one block of images with all sentences; a block has a few hundred MB at most.
_BLOCK_NUMBERS = {"cuda": 1 << 27, "cpu": 1 << 22}


def dense(batch: Regions) -> Tensor:
    """Returns the loss whose scores are weighted means of the similarities of a sentence with the patches of an image.

    The weights are a softmax over the patches.
    """
    similarity = _similarity(batch)
    weight = (SHARPNESS * similarity).softmax(2)
    return _both_directions(batch.scale * (weight * similarity).sum(2).T, batch.owner)


def dense_bytes(size: Size) -> float:
    """Returns the bytes of the matrices that autograd stores for `dense`, for a batch of this size."""
    patches, sentences = size.regions
    return float(_DENSE_MATRICES * _FLOAT_BYTES * size.rows * patches * sentences)


def pooled_vectors(batch: Regions) -> Tensor:
    """Returns the loss whose scores are the cosines of a sentence with the pooled vector of an image.

    The pooled vector is a weighted sum of the patches of the image. The weights are a softmax over the similarities of
    the sentence with the patches.
    """
    weight = (SHARPNESS * _similarity(batch)).softmax(2).to(batch.patches.dtype)
    vector = _at_least_float(weight.transpose(0, 1) @ batch.patches)
    cosine = torch.einsum("ind,nd->in", normalize(vector, dim=2), batch.sentences.to(vector.dtype))
    return _both_directions(batch.scale * cosine, batch.owner)


def pooled_bytes(size: Size) -> float:
    """Returns the bytes of the matrices that autograd stores for `pooled_vectors`, for a batch of this size."""
    _, sentences = size.regions
    vectors = float(_POOLED_MATRICES * _FLOAT_BYTES * size.rows * sentences * size.width)
    return dense_bytes(size) + vectors


def within_images(batch: Regions) -> Tensor:
    """Returns the loss of SPARC, which compares only sentences of the same image. All images are computed at once.

    The weights of the patches are computed in three steps: the similarities are min-max normalised over the patches;
    values below 1 / (number of patches) are set to zero; and the rest is divided by its sum. The score is the dot
    product of a sentence with the pooled vector, which has unit length.
    """
    sentences, real = _padded(batch)
    similarity = _at_least_float(sentences @ batch.patches.mT)
    low, high = similarity.amin(2, keepdim=True), similarity.amax(2, keepdim=True)
    tiny = torch.finfo(similarity.dtype).tiny
    share = (similarity - low) / (high - low).clamp(min=tiny)
    share = share.masked_fill(share < 1 / similarity.shape[2], 0.0)
    weight = (share / share.sum(2, keepdim=True).clamp(min=tiny)).to(batch.patches.dtype)
    vector = normalize(_at_least_float(weight @ batch.patches), dim=2)
    score = batch.scale * (vector @ sentences.to(vector.dtype).mT)
    score = score.masked_fill(~(real[:, :, None] & real[:, None, :]), torch.finfo(score.dtype).min)
    own = (score.log_softmax(2) + score.log_softmax(1)).diagonal(dim1=1, dim2=2)
    count = real.sum(1)
    return -(own.where(real, 0.0).sum(1) / count.clamp(min=1)).sum() / (2 * (count > 0).sum())


def best_patches(batch: Regions) -> Tensor:
    """Returns the similarity of each sentence with the most similar patch of each image, [rows, sentences].

    A loss with late interaction is computed from these similarities, so it takes at least the time of this function.
    They are computed for a part of the images at a time.
    """
    rows, patches, width = batch.patches.shape
    together = max(1, _BLOCK_NUMBERS[batch.device.type] // (patches * len(batch.sentences)))
    scores = batch.sentences.new_empty(rows, len(batch.sentences))
    for start in range(0, rows, together):
        block = batch.patches[start : start + together]
        similarity = batch.sentences @ block.reshape(-1, width).T
        scores[start : start + together] = similarity.unflatten(1, (-1, patches)).amax(2).T
    return scores


def _similarity(batch: Regions) -> Tensor:
    """Returns the similarities of all sentences with all patches, [sentences, rows, patches].

    With this order of the axes they are one matrix product, and the patches of an image are contiguous for the softmax.
    """
    return _at_least_float(torch.einsum("ipd,nd->nip", batch.patches, batch.sentences))


def _both_directions(score: Tensor, owner: Tensor) -> Tensor:
    """Returns the mean of two losses: in the first one the images are the anchors, and in the second one the sentences.

    Both are computed from `score` [rows, sentences]. `owner` [sentences] is the row of each sentence's image. Each loss
    is a mean of cross-entropies over its anchors. All sentences of an image are its positives. An image without a
    sentence is not an anchor, but a negative of every sentence.
    """
    own = owner == torch.arange(len(score), device=score.device)[:, None]
    count = own.sum(1)
    of_images = score.log_softmax(1).where(own, 0.0).sum(1) / count.clamp(min=1)
    of_sentences = score.log_softmax(0).where(own, 0.0).sum()
    return -(of_images.sum() / (count > 0).sum() + of_sentences / len(owner)) / 2


def _padded(batch: Regions) -> tuple[Tensor, Tensor]:
    """Returns the sentences of each image, padded to [rows, longest, width], and a mask that is False for the padding.

    `longest` is the largest number of sentences of an image.
    """
    rows = len(batch.patches)
    count = torch.bincount(batch.owner, minlength=rows)
    place = torch.arange(len(batch.owner), device=batch.device) - (count.cumsum(0) - count)[batch.owner]
    most = int(count.max())
    padded = batch.sentences.new_zeros(rows, most, batch.sentences.shape[1])
    padded = padded.index_put((batch.owner, place), batch.sentences)
    return padded, torch.arange(most, device=batch.device) < count[:, None]


def _at_least_float(numbers: Tensor) -> Tensor:
    """Converts a tensor of half precision to float32, and returns any other tensor unchanged."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
