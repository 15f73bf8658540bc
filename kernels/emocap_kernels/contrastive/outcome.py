"""The sums of one rank over its anchors, and the result that all ranks make of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed.numbers import sum_over
from emocap_kernels.distributed.ranks import Ranks, Span
from emocap_kernels.result import Directions, LossResult


@dataclass(frozen=True, slots=True)
class Tally:
    """Over the local anchors of each direction, 0-dim each: their losses, positives, and best candidates that fit."""

    image_loss: Tensor
    text_loss: Tensor
    image_positives: Tensor
    text_positives: Tensor
    image_found: Tensor
    text_found: Tensor

    def means(self, span: Span, ranks: Ranks) -> Tensor:
        """Means over the global batch, float64 [5]: the losses, the positives of both, and the recalls."""
        sums = [
            self.image_loss,
            self.text_loss,
            (self.image_positives.double() + self.text_positives.double()) / 2,
            self.image_found,
            self.text_found,
        ]
        return sum_over(torch.stack([each.double() for each in sums]), ranks) / span.total


def outcome(loss: Tensor, seen: Tensor) -> LossResult:
    """`loss` keeps its graph; `seen` are the means of a `Tally`."""
    image_to_text, text_to_image, positives, by_image, by_text = seen.unbind()
    return LossResult(loss, image_to_text, text_to_image, positives, Directions(by_image, by_text))


def hits(best: Tensor, span: Span, ids: Tensor | None) -> Tensor:
    """How many of the local anchors, whose best candidates are `best`, found their own pair or one of their id."""
    own = span.indices(best.device)
    found = best == own if ids is None else ids[best.clamp(max=len(ids) - 1)] == ids[own]
    return found.double().sum()
