"""Computes the positives of the local loss for any images and sentences. Forward and backward get equal positives.

Mining compares sentences with sentences. If it finds that sentence m is similar to sentence n, then m is mined for the
image that owns n, and the image that owns m is mined for n. The backends `chunked` and `fused` share this module. Each
of them implements the comparison of sentences (`SentenceComparison`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emocap_kernels.distributed.reductions import gather_rows
from emocap_kernels.mining import Mining
from emocap_kernels.positives import MinedLists, apply_treatment
from emocap_kernels.region.batch import RegionBatch, SentenceBlock
from emocap_kernels.targets import MaskTargets


class SentenceComparison(Protocol):
    """Describes how a backend compares sentences with each other."""

    def any_similar(self, batch: RegionBatch, images: slice, block: SentenceBlock, threshold: float) -> Tensor:
        """Returns for each image which sentences of `block` are similar to at least one sentence of the image.

        The result is a bool mask, [images, sentences]. `images` are local indices. Two sentences are similar if their
        cosine is at least `threshold`.
        """
        ...

    def nearest(self, batch: RegionBatch, mining: Mining) -> Tensor:
        """Returns the sentences that `mining`, a rule with `top_k`, mines for each local sentence.

        The result is [local sentences, at most top_k]. The entries are global indices of sentences, and -1 marks an
        unused entry. This is a collective: all ranks must call it.
        """
        ...


@dataclass(frozen=True, slots=True)
class OwnSentences:
    """Describes the order in which the sentences of this rank are sorted by image.

    Attributes:
        order: int64 [local sentences], the local indices of the sentences in sorted order.
        images: int64 [local sentences], the local index of the image of each sorted sentence.
        starts: int64 [local images + 1], the position in `order` of each local image's first sentence. The last entry
            is the number of local sentences.
    """

    order: Tensor
    images: Tensor
    starts: Tensor

    @staticmethod
    def of(batch: RegionBatch) -> OwnSentences:
        """Sorts the sentences of this rank by image. The sort is stable, and no value is copied to the host."""
        # `owner` has global indices of images. A sentence and its image are always on the same rank.
        images = batch.owner[batch.sentence_partition.own] - batch.image_partition.first
        by_image = images.sort(stable=True)
        edges = torch.arange(batch.image_partition.local + 1, device=images.device)
        return OwnSentences(by_image.indices, by_image.values, torch.searchsorted(by_image.values, edges))


@dataclass(frozen=True, slots=True)
class RegionPositives:
    """Determines the positives of images and sentences, including those that the mining rule finds.

    Attributes:
        comparison: Compares sentences for mining; each backend has its own.
        lists: The candidates that were mined for each anchor if the rule has `top_k`; otherwise None.
    """

    comparison: SentenceComparison
    lists: MinedLists | None

    @staticmethod
    def of(batch: RegionBatch, comparison: SentenceComparison) -> RegionPositives:
        """Prepares the positives, and mines the lists of candidates if the rule has `top_k`.

        This is a collective, because the lists are gathered: all ranks must call it.
        """
        return RegionPositives(comparison, _mine_lists(batch, comparison))

    def targets(self, batch: RegionBatch, images: slice, block: SentenceBlock) -> MaskTargets:
        """Returns which pairs of the local `images` and the sentences of `block` are positives or excluded."""
        rows = torch.arange(images.start, images.stop, device=batch.owner.device) + batch.image_partition.first
        known = batch.owner[block.columns] == rows[:, None]
        if batch.mining is None:
            return MaskTargets(known, known)
        return apply_treatment(known, *self._mined(batch, images, block, batch.mining), batch.mining)

    def _mined(self, batch: RegionBatch, images: slice, block: SentenceBlock, mining: Mining) -> tuple[Tensor, Tensor]:
        """Returns two bool masks, [images, sentences]: pairs mined for image anchors, and for sentence anchors."""
        if self.lists is not None:
            return self.lists.masks(images, block.columns)
        assert mining.threshold is not None
        # A cosine is symmetric, so both directions mine the same pairs.
        similar = self.comparison.any_similar(batch, images, block, mining.threshold)
        return similar, similar


def _mine_lists(batch: RegionBatch, comparison: SentenceComparison) -> MinedLists | None:
    """Returns the candidates that a rule with `top_k` mined, or None if the rule has no `top_k`.

    The rule compares sentences with sentences. An image's candidates are the sentences that the rule finds for the
    sentences of this image. A sentence's candidates are the images that own the sentences found for it. This is a
    collective: all ranks must call it.
    """
    if batch.mining is None or batch.mining.top_k is None:
        return None
    partition = batch.sentence_partition
    # Every rank needs the lists of all sentences, because each sentence is a column of its scores.
    mined = gather_rows(comparison.nearest(batch, batch.mining), partition, batch.ranks).long()
    # An unused entry is -1. It is clamped only so that it can be an index.
    owners = torch.where(mined >= 0, batch.owner[mined.clamp(min=0)], -1)
    own = partition.own
    return MinedLists(mined[own], owners, batch.image_partition.first, row_of=batch.owner[own])
