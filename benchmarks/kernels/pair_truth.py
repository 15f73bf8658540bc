"""Plain InfoNCE in float64 at any size: the loss, and the gradients of some rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .pairs import PairBatch
from .subject import Exact, sample

_BLOCK_NUMBERS = 1 << 25


def exact(batch: PairBatch, count: int) -> Exact:
    """Returns the loss, and the gradients of the same `count` rows of images and of texts."""
    chosen = sample(len(batch.image), count, batch.device)
    with torch.no_grad():
        image, text, scale = batch.image.detach(), batch.text.detach(), batch.scale.detach().double()
        of_images, of_texts = _log_sums(image, text, scale), _log_sums(text, image, scale)
        own = scale * (image.double() * text.double()).sum(1)
        return Exact(
            loss=((of_images + of_texts) / 2 - own).mean(),
            images=chosen,
            image_gradient=_gradient_rows(image, text, scale, of_images, of_texts, chosen),
            texts=chosen,
            text_gradient=_gradient_rows(text, image, scale, of_texts, of_images, chosen),
        )


def _log_sums(anchors: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
    """Returns the log-sum-exp of the scores of each anchor, float64 [rows], computed in blocks of both sides."""
    side = int(_BLOCK_NUMBERS**0.5)
    parts: list[Tensor] = []
    for block in anchors.split(side):
        total = torch.full((len(block),), float("-inf"), dtype=torch.float64, device=block.device)
        wide = scale * block.double()
        for others in candidates.split(side):
            total = torch.logaddexp(total, torch.logsumexp(wide @ others.double().T, 1))
        parts.append(total)
    return torch.cat(parts)


def _gradient_rows(
    anchors: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, chosen: Tensor
) -> Tensor:
    """Returns scale / 2B times (the sum over j of (p_ij + q_ij) u_j, minus 2 u_i), float64 [count, width].

    Args:
        anchors: [B, width], the side whose gradient is returned.
        candidates: [B, width], the other side.
        scale: 0-dim.
        rows: [B], log-sum-exp of the scores of each anchor, which normalise p.
        columns: [B], log-sum-exp of the scores of each candidate, which normalise q.
        chosen: int64 [count], the rows.
    """
    some = anchors[chosen].double()
    gradient = -2 * candidates[chosen].double()
    for others, theirs in zip(candidates.split(1 << 16), columns.split(1 << 16), strict=True):
        scores = scale * some @ others.double().T
        weights = (scores - rows[chosen, None]).exp() + (scores - theirs).exp()
        gradient += weights @ others.double()
    return scale * gradient / (2 * len(anchors))
