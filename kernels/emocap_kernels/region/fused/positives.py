"""Compares sentences by kernels, and packs the targets of the local loss into the mask that a kernel reads.

`KernelComparison` does by kernels what `region.chunked` does by matrix products. The modules `emocap_kernels.positives`
and `region.positives` decide which pairs are positives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.fused.launch import aligned, launch, tile_descriptor
from emocap_kernels.fused.nearest import CandidateBlock, nearest_candidates
from emocap_kernels.fused.tiling import TileConfig, tile_config_for
from emocap_kernels.mining import Mining
from emocap_kernels.region.batch import RegionBatch, SentenceBlock
from emocap_kernels.region.fused.kernels.mining import any_similar_kernel
from emocap_kernels.region.fused.kernels.pooling import (
    COLUMN_DROPPED,
    COLUMN_POSITIVE,
    ROW_DROPPED,
    ROW_POSITIVE,
)
from emocap_kernels.region.positives import OwnSentences
from emocap_kernels.targets import MaskTargets

# Own sentences of an image that are compared at once: the columns of a tile of `any_similar_kernel`.
OWN_SENTENCES = 16


@dataclass(frozen=True, slots=True)
class KernelComparison:
    """Compares sentences for mining (`SentenceComparison`) by kernels. No value is copied to the host.

    Attributes:
        order: int64 [local sentences], the local indices of the sentences in the order of their images.
        starts: int32 [local images + 1], the positions in `order` at which the sentences of each image begin. The last
            entry is the number of local sentences.
    """

    order: Tensor
    starts: Tensor

    @staticmethod
    def of(batch: RegionBatch) -> KernelComparison:
        """Returns the object that compares the sentences of `batch`.

        The method `any_similar` needs the sentences of this rank in the order of their images. That order is computed
        here.
        """
        own = OwnSentences.of(batch)
        return KernelComparison(own.order, own.starts.int())

    def any_similar(self, batch: RegionBatch, images: slice, block: SentenceBlock, threshold: float) -> Tensor:
        number, width = images.stop - images.start, len(block.sentences)
        similar = self.order.new_empty(number, width, dtype=torch.uint8)
        tile = tile_config_for(block.sentences.dtype, self.order.device, masked=True)
        own = aligned(batch.sentences.detach().to(block.sentences.dtype)[self.order])
        launch(
            any_similar_kernel,
            (ceil_div(width, tile.rows), number),
            tile_descriptor(aligned(block.sentences), tile.rows, tile.depth),
            tile_descriptor(own, OWN_SENTENCES, tile.depth),
            self.starts[images.start :],
            similar,
            threshold,
            width,
            width,
            own.shape[1],
            **{**tile.options(), "bC": OWN_SENTENCES},
        )
        return similar != 0

    def nearest(self, batch: RegionBatch, mining: Mining) -> Tensor:
        assert mining.top_k is not None
        own = batch.sentences.detach().to(batch.patches.dtype)
        tile: TileConfig = tile_config_for(own.dtype, own.device, masked=True)

        def candidates() -> Iterator[CandidateBlock]:
            for block in batch.blocks():
                yield CandidateBlock(block.columns.start, [(own, block.sentences)])

        local, first = batch.sentence_partition.local, batch.sentence_partition.first
        return nearest_candidates(candidates(), local, first, tile, top_k=mining.top_k, threshold=mining.threshold)


def mask_bytes(targets: MaskTargets) -> Tensor:
    """Packs the bool masks of `targets` into the mask that the gradient kernel reads, uint8 of the same shape.

    Each bool mask is one bit of a byte.
    """
    mask = targets.row_positive.to(torch.uint8) * ROW_POSITIVE.value
    mask |= targets.column_positive.to(torch.uint8) * COLUMN_POSITIVE.value
    if targets.row_dropped is not None and targets.column_dropped is not None:
        mask |= targets.row_dropped.to(torch.uint8) * ROW_DROPPED.value
        mask |= targets.column_dropped.to(torch.uint8) * COLUMN_DROPPED.value
    return mask
