"""Defines the result that both losses return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Directions(NamedTuple):
    """Holds one 0-dim tensor for each direction of a loss. In the local loss, "text" in a name means a sentence."""

    image_to_text: Tensor
    text_to_image: Tensor


@dataclass(frozen=True, slots=True)
class LossResult:
    """Holds the loss of the global batch, which is equal on every rank to the bit.

    All values are 0-dim tensors on the device of the inputs, so the host does not wait for a value until the caller
    reads it. All values except `loss` are detached.

    Attributes:
        loss: Mean of the two directions. After its backward, the mean over ranks of each gradient (as DDP and DeepSpeed
            compute it) is the gradient of this loss.
        image_to_text: Mean loss of the image anchors.
        text_to_image: Mean loss of the text anchors (of the sentences, in the local loss).
        positives: Mean number of positives of an anchor, averaged over both directions. Positives without mining, such
            as the image and the text of one sample, count too.
        recall_at_1: Fraction of the anchors, 0 to 1, for which the best-scoring candidate is correct. In the global
            loss, the candidate of the anchor's own sample and all candidates with an equal id are correct. In the local
            loss, the sentences of an image are correct for the image, and the image that owns a sentence is correct for
            the sentence. Candidates that mining excludes from the loss are compared as well. If scores are equal after
            rounding, the candidate with the lowest global index is the best one; docs/method.md, section 5, describes
            one exception of `fused`.
    """

    loss: Tensor
    image_to_text: Tensor
    text_to_image: Tensor
    positives: Tensor
    recall_at_1: Directions

    @staticmethod
    def from_means(loss: Tensor, means: Tensor) -> LossResult:
        """Returns a result from a loss with its autograd graph and from five detached means.

        Args:
            loss: 0-dim.
            means: [5], in this order: image-to-text loss, text-to-image loss, number of positives, image-to-text
                recall, text-to-image recall.
        """
        image_to_text, text_to_image, positives, image_recall, text_recall = means.unbind()
        return LossResult(loss, image_to_text, text_to_image, positives, Directions(image_recall, text_recall))


def empty_result(*inputs: Tensor | float) -> LossResult:
    """Returns the result of a batch without anchors: the loss is 0, and every input tensor gets a gradient of zeros.

    The loss has an autograd graph, so a training loop can call its backward as in any other step.
    """
    tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
    # Sums over no elements are exactly 0 whatever the tensors hold, NaN included.
    loss = torch.stack([tensor.reshape(-1)[:0].sum() for tensor in tensors]).sum()
    zero = loss.detach()
    return LossResult(loss, zero, zero, zero, Directions(zero, zero))
