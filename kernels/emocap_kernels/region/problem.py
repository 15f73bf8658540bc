"""One call of the local loss as a backend sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.distributed import Ranks, Span
from emocap_kernels.mining import Mining


@dataclass(frozen=True, slots=True)
class RegionProblem:
    """The local loss of the global batch, seen from a rank that holds some images and all sentences.

    Attributes:
        patches: [local images, patches, width]; zero where `patch_mask` is False.
        sentences: [total sentences, width], of the dtype of `patches`.
        owner: int64 [total sentences], the global index of the image that each belongs to.
        scale: 0-dim, of the dtype of `patches`.
        sharpness: Of the pooling; 0 is the mean over patches.
        patch_mask: Bool [local images, patches], True is kept; None keeps all.
        mining: None for own sentences only; its guide is not read.
        images: Where the local images lie in the batch.
        lines: Where the local sentences lie in the batch.
        ranks: Who holds the others.
    """

    patches: Tensor
    sentences: Tensor
    owner: Tensor
    scale: Tensor
    sharpness: float
    patch_mask: Tensor | None
    mining: Mining | None
    images: Span
    lines: Span
    ranks: Ranks

    def anchors(self) -> Tensor:
        """Which images of the batch own a sentence, bool [total images]: the others are candidates only."""
        return torch.bincount(self.owner, minlength=self.images.total) > 0


def weights(similarity: Tensor, sharpness: float, kept: Tensor | None) -> Tensor:
    """Softmax over patches of `sharpness * similarity`, and 0 for an image of which no patch is kept.

    Args:
        similarity: [..., images, patches].
        sharpness: At least 0.
        kept: Bool [images, patches] or None.
    """
    logits = similarity * sharpness
    if kept is None:
        return logits.softmax(-1)
    return logits.masked_fill(~kept, torch.finfo(logits.dtype).min).softmax(-1) * kept
