"""The positives of the local loss, for any images and sentences. Forward and backward compute them the same way."""

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
    """A backend's way to compare sentences with each other."""

    def any_similar(self, batch: RegionBatch, images: slice, block: SentenceBlock, threshold: float) -> Tensor:
        """Returns whether any own sentence of an image has at least that cosine, bool [images, sentences of block]."""
        ...

    def nearest(self, batch: RegionBatch, mining: Mining) -> Tensor:
        """Returns the sentences mined for each local sentence, as global indices; -1 means none.

        A collective of all ranks. The shape is [local sentences, at most top_k].
        """
        ...


@dataclass(frozen=True, slots=True)
class OwnSentences:
    """The sentences of this rank in the order of their images.

    Attributes:
        order: int64 [local sentences], the local sentences sorted by image.
        images: int64 [local sentences], the local image of each in that order.
        starts: int64 [local images + 1], where each local image begins in that order.
    """

    order: Tensor
    images: Tensor
    starts: Tensor

    @staticmethod
    def of(batch: RegionBatch) -> OwnSentences:
        """Sorts the sentences of this rank by image. The sort is stable, and the host reads no value."""
        images = batch.owner[batch.sentence_partition.own] - batch.image_partition.first
        by_image = images.sort(stable=True)
        edges = torch.arange(batch.image_partition.local + 1, device=images.device)
        return OwnSentences(by_image.indices, by_image.values, torch.searchsorted(by_image.values, edges))


@dataclass(frozen=True, slots=True)
class RegionPositives:
    """Holds all that decides about the positives of any images and sentences, except the sentences themselves.

    Attributes:
        owner: int64 [total sentences], global index of the owner.
        mining: None if own sentences are the only positives.
        comparison: How the backend compares sentences.
        lists: The mined sentences, with `top_k`.
    """

    owner: Tensor
    mining: Mining | None
    comparison: SentenceComparison
    lists: MinedLists | None

    @staticmethod
    def of(batch: RegionBatch, comparison: SentenceComparison) -> RegionPositives:
        """Prepares the positives and mines the `top_k` lists. A collective, because the lists are gathered."""
        return RegionPositives(batch.owner, batch.mining, comparison, _mine_lists(batch, comparison))

    def targets(self, batch: RegionBatch, images: slice, block: SentenceBlock) -> MaskTargets:
        """Returns the targets of the local `images` against the sentences of `block`."""
        rows = torch.arange(images.start, images.stop, device=self.owner.device) + batch.image_partition.first
        known = self.owner[block.columns] == rows[:, None]
        if self.mining is None:
            return MaskTargets(known, known)
        by_image, by_sentence = self._mined(batch, images, block, self.mining)
        return apply_treatment(known, by_image, by_sentence, self.mining)

    def _mined(self, batch: RegionBatch, images: slice, block: SentenceBlock, mining: Mining) -> tuple[Tensor, Tensor]:
        """Returns the pairs that images mined and those that sentences mined, bool [images, sentences] each."""
        if self.lists is not None:
            return self.lists.masks(images, block.columns)
        assert mining.threshold is not None
        # A cosine is symmetric, so both directions mine the same pairs.
        similar = self.comparison.any_similar(batch, images, block, mining.threshold)
        return similar, similar


def _mine_lists(batch: RegionBatch, comparison: SentenceComparison) -> MinedLists | None:
    """An image mines what its sentences mine. A sentence mines the owners of what it mines."""
    if batch.mining is None or batch.mining.top_k is None:
        return None
    partition = batch.sentence_partition
    mined = gather_rows(comparison.nearest(batch, batch.mining), partition, batch.ranks).long()
    owners = torch.where(mined >= 0, batch.owner[mined.clamp(min=0)], -1)
    own = partition.own
    return MinedLists(mined[own], owners, batch.image_partition.first, row_of=batch.owner[own])
