"""What both losses return."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Directions(NamedTuple):
    """One number for each direction; in the local loss `text` reads as `sentence`."""

    image_to_text: Tensor
    text_to_image: Tensor


@dataclass(frozen=True, slots=True)
class LossResult:
    """The loss of the global batch, the same on every rank; all fields are 0-dim, all but `loss` are detached.

    Attributes:
        loss: The mean of the two directions. After its backward, a mean over ranks of each gradient is the
            gradient of the global loss.
        image_to_text: Mean loss of the image anchors.
        text_to_image: Mean loss of the text (sentence) anchors.
        positives: Mean number of positives of an anchor, its own counted; the mean of the two directions.
        recall_at_1: Share of anchors whose best-scoring candidate is theirs by identity (own pair or equal id;
            own sentences in the local loss). All candidates compete, ignored ones too; of equal scores,
            as a matrix product rounds them, the lower global index wins.
    """

    loss: Tensor
    image_to_text: Tensor
    text_to_image: Tensor
    positives: Tensor
    recall_at_1: Directions


def nothing(*inputs: Tensor | float) -> LossResult:
    """The loss of a batch without anchors: 0, with a gradient of zeros for every input tensor."""
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    # Sums over no elements: exactly 0 whatever the values are, also when they are NaN.
    loss = torch.stack([tensor.reshape(-1)[:0].sum() for tensor in tensors]).sum()
    zero = loss.detach()
    return LossResult(loss, zero, zero, zero, Directions(zero, zero))
