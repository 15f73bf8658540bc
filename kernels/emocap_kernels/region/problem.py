"""One call of the local loss as a backend sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emocap_kernels.distributed.columns import Columns, Sums
from emocap_kernels.distributed.ranks import Ranks, Span
from emocap_kernels.mining import Mining


@dataclass(frozen=True, slots=True)
class Block:
    """Some sentences of the batch.

    Attributes:
        columns: Their global indices.
        sentences: [sentences, width], of the type of the patches.
    """

    columns: slice
    sentences: Tensor


@dataclass(frozen=True, slots=True)
class RegionProblem:
    """The local loss of the global batch, seen from a rank that holds some images and is brought all sentences.

    Attributes:
        patches: [local images, patches, width]; zero where `patch_mask` is False.
        sentences: [local sentences, width], in the type that travels.
        columns: What travels: the sentences.
        owner: int64 [total sentences], the global index of the image that each belongs to.
        scale: 0-dim, of the type of the scores: at least float32.
        sharpness: Of the pooling; 0 is the mean over patches.
        patch_mask: Bool [local images, patches], True is kept; None keeps all.
        mining: None for own sentences only; its guide is not read.
        images: Where the local images lie in the batch.
        lines: Where the local sentences lie in the batch.
        ranks: Who holds the others.
    """

    patches: Tensor
    sentences: Tensor
    columns: Columns
    owner: Tensor
    scale: Tensor
    sharpness: float
    patch_mask: Tensor | None
    mining: Mining | None
    images: Span
    lines: Span
    ranks: Ranks

    def blocks(self, sums: Sums | None = None) -> Iterator[Block]:
        """All sentences of the batch, in the order of `Columns.blocks`."""
        for arrived in self.columns.blocks(sums):
            yield Block(arrived.columns, arrived.vectors[0].to(self.patches.dtype))

    def put_away(self) -> tuple[RegionProblem, tuple[Tensor, ...]]:
        """This problem without its vectors, and the vectors, for autograd to keep until the way back."""
        columns, travelling = self.columns.put_away()
        left = replace(self, patches=self.patches[:0].detach(), sentences=self.sentences[:0].detach(), columns=columns)
        return left, (self.patches, self.sentences, *travelling)

    def taken_out(self, tensors: Sequence[Tensor]) -> RegionProblem:
        """What `put_away` left, with its vectors."""
        patches, sentences, *travelling = tensors
        return replace(self, patches=patches, sentences=sentences, columns=self.columns.taken_out(travelling))

    def every_sentence(self) -> Tensor:
        """[total sentences, width]."""
        return self.columns.whole()[0].to(self.patches.dtype)

    def anchors(self) -> Tensor:
        """Which images of the batch own a sentence, bool [total images]: the others are candidates only."""
        # Not bincount, which asks the host for its length.
        return torch.zeros(self.images.total, dtype=torch.bool, device=self.owner.device).index_fill_(
            0, self.owner, True
        )

    def kept(self, images: slice) -> Tensor | None:
        return None if self.patch_mask is None else self.patch_mask[images]
