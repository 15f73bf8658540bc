"""The local loss in float64 at any size: its value, and the gradients of some images and some sentences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .regions import SHARPNESS, Regions
from .subject import Exact, sample

_BLOCK_NUMBERS = 1 << 25


def exact(batch: Regions, count: int) -> Exact:
    """Returns the loss, and the gradients of `count` images and sentences.

    Scores are computed block by block. The gradient of each score is then propagated to the sampled vectors.
    """
    patches, sentences, scale = (tensor.detach() for tensor in (batch.patches, batch.sentences, batch.scale.double()))
    images = sample(len(patches), count, batch.device)
    sampled_sentences = sample(len(sentences), count, batch.device)
    with torch.no_grad():
        score = torch.cat([scale * _pooled(block, sentences.double()) for _, block in _blocks(patches, sentences)])
        loss, slope = _loss_and_slope(score, batch.owner)
        slope *= scale
    by_image = [
        _backward(block, sentences.double(), slope[images[part]])[0]
        for part, block in _blocks(patches[images], sentences)
    ]
    by_sentence = [
        _backward(block, sentences[sampled_sentences].double(), slope[part][:, sampled_sentences])[1]
        for part, block in _blocks(patches, sentences)
    ]
    return Exact(loss, images, torch.cat(by_image), sampled_sentences, torch.stack(by_sentence).sum(0))


def _blocks(patches: Tensor, sentences: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields blocks of images in float64 whose similarities with all sentences fit into memory."""
    together = max(1, _BLOCK_NUMBERS // (patches.shape[1] * len(sentences)))
    for start in range(0, len(patches), together):
        part = slice(start, start + together)
        yield part, patches[part].double()


def _pooled(patches: Tensor, sentences: Tensor) -> Tensor:
    """Returns the attention-weighted mean of the similarities over patches, [images, sentences]."""
    similarity = torch.einsum("ipd,nd->inp", patches, sentences)
    return ((SHARPNESS * similarity).softmax(2) * similarity).sum(2)


def _loss_and_slope(score: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss of `score` [rows, sentences], and the gradient in `score`."""
    own = (owner == torch.arange(len(score), device=score.device)[:, None]).double()
    count = own.sum(1, keepdim=True)
    anchors = (count > 0).double() / (count > 0).sum()
    share = own / count.clamp(min=1)
    by_image, by_sentence = score.log_softmax(1), score.log_softmax(0)
    loss = -((anchors * share * by_image).sum() + (own * by_sentence).sum() / len(owner)) / 2
    return loss, (anchors * (by_image.exp() - share) + (by_sentence.exp() - own) / len(owner)) / 2


def _backward(patches: Tensor, sentences: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of patches and of sentences, from those of their pooled similarities."""
    sides = [side.detach().requires_grad_() for side in (patches, sentences)]
    by_patch, by_sentence = torch.autograd.grad((slope * _pooled(*sides)).sum(), sides)
    return by_patch, by_sentence
