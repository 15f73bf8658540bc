"""The local loss in float64 at any size: its value, and its gradients in some images and some sentences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .regions import SHARPNESS, Regions
from .subject import Exact, sample

_BLOCK_NUMBERS = 1 << 25


def exact(batch: Regions, count: int) -> Exact:
    """Scores block by block; from them the gradient of each score, which is carried into `count` of both sides."""
    patches, sentences, scale = (tensor.detach() for tensor in (batch.patches, batch.sentences, batch.scale.double()))
    images = sample(len(patches), count, batch.device)
    lines = sample(len(sentences), count, batch.device)
    with torch.no_grad():
        score = torch.cat([scale * _pooled(block, sentences.double()) for _, block in _blocks(patches, sentences)])
        loss, slope = _loss_and_slope(score, batch.owner)
        slope *= scale
    by_image = [
        _carried(block, sentences.double(), slope[images[part]])[0]
        for part, block in _blocks(patches[images], sentences)
    ]
    by_line = [
        _carried(block, sentences[lines].double(), slope[part][:, lines])[1]
        for part, block in _blocks(patches, sentences)
    ]
    return Exact(loss, images, torch.cat(by_image), lines, torch.stack(by_line).sum(0))


def _blocks(patches: Tensor, sentences: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Images in float64, as many as have room beside all sentences."""
    together = max(1, _BLOCK_NUMBERS // (patches.shape[1] * len(sentences)))
    for start in range(0, len(patches), together):
        part = slice(start, start + together)
        yield part, patches[part].double()


def _pooled(patches: Tensor, sentences: Tensor) -> Tensor:
    """[images, sentences]: the mean similarity over patches, weighted as the sentence weighs them."""
    similarity = torch.einsum("ipd,nd->inp", patches, sentences)
    return ((SHARPNESS * similarity).softmax(2) * similarity).sum(2)


def _loss_and_slope(score: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of `score` [rows, sentences], and its gradient in it."""
    own = (owner == torch.arange(len(score), device=score.device)[:, None]).double()
    count = own.sum(1, keepdim=True)
    anchors = (count > 0).double() / (count > 0).sum()
    share = own / count.clamp(min=1)
    by_image, by_sentence = score.log_softmax(1), score.log_softmax(0)
    loss = -((anchors * share * by_image).sum() + (own * by_sentence).sum() / len(owner)) / 2
    return loss, (anchors * (by_image.exp() - share) + (by_sentence.exp() - own) / len(owner)) / 2


def _carried(patches: Tensor, sentences: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of patches and of sentences, from that of their pooled similarities."""
    sides = [side.detach().requires_grad_() for side in (patches, sentences)]
    by_patch, by_sentence = torch.autograd.grad((slope * _pooled(*sides)).sum(), sides)
    return by_patch, by_sentence
