"""Divides a contrastive loss of a batch among the samples of the batch, so that its random error can be estimated.

The losses of the anchors of a batch depend on one another, because each sample is also a candidate for all others: a
text that many images find similar makes all their losses larger. A bootstrap of the losses of anchors ignores this, and
finds differences between equal models too often. So the value of a sample says by how much the loss of the batch
changes without the sample. If L is the loss of n samples, and L[j] the loss of the others if sample j is removed, as an
anchor and as a candidate:

    value[j] = L - (n - 1) * (L[j] - mean of L[j] over the samples)

This is the jackknife (J. W. Tukey, 1958). The mean of the values is exactly the loss, and the values can be drawn like
those of independent samples: their variance divided by n is the jackknife's estimate of the variance of the loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

_ENTRIES = 1 << 20  # Number of scores that are in memory at the same time; several arrays of this size are.


class LossValues(NamedTuple):
    """Holds a contrastive loss of batches.

    Attributes:
        loss: The mean over the batches.
        ignorant: The same mean for a model that gives all pairs the same score.
        rows: The rows in `Features` of the samples of all batches.
        values: The value of each of these samples. Their mean is the loss.
        about: A digest of what was compared: the samples and texts of each batch, and which pairs are positives.
    """

    loss: float
    ignorant: float
    rows: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    about: str = ""


def direction_values(
    score: Callable[[Tensor], Float64[Tensor, "block candidates"]],
    positive: Callable[[Tensor], Bool[Tensor, "block candidates"]],
    *,
    anchors: Int64[Tensor, " anchors"],
    candidates: Int64[Tensor, " candidates"],
    samples: int,
) -> Float64[Tensor, " samples"]:
    """Returns the values of the samples of a batch for one direction of the loss. Their mean is the loss.

    The loss of anchor i is log sum_j exp(S_ij), minus the mean of S_ij over its positives j.

    Args:
        score: Returns the scores S of the anchors with the given indices with all candidates.
        positive: Returns which of these pairs are positives. Every anchor has at least one of its own sample.
        anchors: The sample to which each anchor belongs, counted from 0. There is at least one anchor.
        candidates: The sample to which each candidate belongs.
        samples: The number of samples of the batch, n.
    """
    losses: list[Tensor] = []
    changes = torch.zeros(samples, dtype=torch.float64)
    for block in torch.arange(len(anchors)).split(max(1, _ENTRIES // max(samples, len(candidates)))):
        of_anchors, of_samples = _without_each(score(block), positive(block), candidates, samples)
        losses.append(of_anchors)
        is_other = anchors[block, None] != torch.arange(samples)
        changes += (of_anchors[:, None] - of_samples).where(is_other, 0.0).sum(0)
    return jackknife_values(torch.cat(losses), anchors, samples=samples, changes=changes)


def jackknife_values(
    losses: Float64[Tensor, " anchors"],
    anchors: Int64[Tensor, " anchors"],
    *,
    samples: int,
    changes: Float64[Tensor, " samples"] | None = None,
) -> Float64[Tensor, " samples"]:
    """Returns the values of the samples of a batch. Their mean is the mean of the losses of the anchors.

    Args:
        losses: The loss of each anchor.
        anchors: The sample to which each anchor belongs, counted from 0. A sample may have several anchors or none.
        samples: The number of samples of the batch.
        changes: By how much the losses of the anchors of other samples fall, all together, if a sample is removed from
            the candidates; None if they do not change.
    """
    own, counts = torch.zeros(2, samples, dtype=torch.float64)
    own.index_add_(0, anchors, losses)
    counts.index_add_(0, anchors, torch.ones_like(losses))
    loss, left = losses.mean(), len(anchors) - counts
    fallen = own if changes is None else own + changes
    # Without the only sample that has anchors there is no loss.
    without = ((losses.sum() - fallen) / left).where(left > 0, loss)
    return loss - (samples - 1) * (without - without.mean())


def _without_each(
    scores: Float64[Tensor, "anchors candidates"],
    positives: Bool[Tensor, "anchors candidates"],
    candidates: Int64[Tensor, " candidates"],
    samples: int,
) -> tuple[Float64[Tensor, " anchors"], Float64[Tensor, "anchors samples"]]:
    """Returns the losses of anchors, and their losses without the candidates of each sample.

    A loss without the sample of the anchor itself means nothing.
    """

    def by_sample(values: Tensor) -> Tensor:
        return torch.zeros(len(values), samples, dtype=torch.float64).index_add_(1, candidates, values)

    largest = scores.amax(1, keepdim=True)
    parts = by_sample((scores - largest).exp())
    # A difference of sums would lose all digits where one sample is nearly the whole sum.
    nothing = parts.new_zeros(len(parts), 1)
    before = torch.cat([nothing, parts.cumsum(1)[:, :-1]], 1)
    after = torch.cat([parts.flip(1).cumsum(1).flip(1)[:, 1:], nothing], 1)
    attraction = by_sample(scores.where(positives, 0.0))
    counts = by_sample(positives.double())
    whole, number = attraction.sum(1, keepdim=True), counts.sum(1, keepdim=True)
    losses = (largest + parts.sum(1, keepdim=True).log() - whole / number)[:, 0]
    return losses, largest + (before + after).log() - (whole - attraction) / (number - counts)
