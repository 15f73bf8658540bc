"""Cuts the scores of the chunked backend into tiles, and computes the targets of each tile.

The targets are the positives and the excluded pairs. They are computed in the same way in forward and in backward.
Therefore both passes have exactly the same targets, and no mask has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.contrastive.batch import ContrastiveBatch, TextBlock, duplicates_of
from emocap_kernels.mining import Mining
from emocap_kernels.positives import GuideSimilarities, MinedLists, apply_treatment, mine_top_k, tile_similarities
from emocap_kernels.targets import DiagonalTargets, MaskTargets, Targets


@dataclass(frozen=True, slots=True)
class Tiling:
    """Holds the slices that cut the score matrix, and the values from which the positives of any tile are determined.

    Attributes:
        rows: Slices of the local images. The images of a slice and the texts of a block form a tile.
        zeros: Zeros, [total], in the type of the scores; `DiagonalTargets` needs a part of them for each tile.
        lists: The mined candidates, if the mining rule has `top_k`; otherwise None.
    """

    rows: list[slice]
    zeros: Tensor
    lists: MinedLists | None

    @staticmethod
    def of(batch: ContrastiveBatch, block_bytes: int | None) -> Tiling:
        """Cuts the scores of `batch` into tiles, and mines the lists of candidates if the rule has `top_k`.

        This is a collective, because the lists of text anchors are gathered: all ranks must call it.

        Args:
            batch: The batch.
            block_bytes: Largest number of bytes of the scores of a tile; None means the default of the device.
        """
        most = block_bytes_on(batch.image.device) if block_bytes is None else block_bytes
        # The widest possible block contains all texts of the batch. The same rows are cut for every block, so forward
        # and backward have tiles of the same shapes.
        row_bytes = batch.scale.element_size() * max(1, batch.partition.total)
        # Masks, guide similarities and a teacher's scores double the memory that a tile of scores needs.
        copies = 1 if batch.features is None else 2
        rows = even_blocks(batch.partition.local, most // (row_bytes * copies))
        with torch.no_grad():
            return Tiling(rows, batch.scale.new_zeros(batch.partition.total), _mine_lists(batch, rows))

    def targets(self, batch: ContrastiveBatch, rows: slice, block: TextBlock, cosine: Tensor) -> Targets:
        """Returns the targets of one tile: its positives and the excluded pairs.

        Args:
            batch: The batch.
            rows: The local images of the tile.
            block: The texts of the tile.
            cosine: [rows, texts], the cosines from which the scores are computed.
        """
        first = batch.partition.first
        # Without mining and ids, no mask is needed at all.
        if batch.mining is None and batch.ids is None:
            own = first + rows.start - block.columns.start
            return DiagonalTargets(own, rows.stop - rows.start, self.zeros[block.columns])
        if batch.ids is not None:
            known = batch.ids[first + rows.start : first + rows.stop, None] == batch.ids[block.columns]
        else:
            known = torch.zeros_like(cosine, dtype=torch.bool)
            known.diagonal(first + rows.start - block.columns.start).fill_(True)
        if batch.mining is None:
            return MaskTargets(known, known)
        return apply_treatment(known, *self._mined(batch, rows, block, cosine, batch.mining), batch.mining)

    def _mined(
        self, batch: ContrastiveBatch, rows: slice, block: TextBlock, cosine: Tensor, mining: Mining
    ) -> tuple[Tensor, Tensor]:
        """Returns two bool masks, [rows, texts]: pairs mined for image anchors, and pairs mined for text anchors."""
        if self.lists is not None:
            return self.lists.masks(rows, block.columns)
        assert mining.threshold is not None
        assert batch.features is not None
        if batch.mined_by_score:
            close = cosine >= mining.threshold
            return close, close
        similar = [batch.features.similarity(each, rows, block.guides) for each in tile_similarities(mining.guide)]
        close = [each >= mining.threshold for each in similar]
        # `similar` has one entry if both directions use the same similarities, and then both masks are the same tensor.
        return close[0], close[-1]


def _mine_lists(batch: ContrastiveBatch, blocks: list[slice]) -> MinedLists | None:
    mining, features = batch.mining, batch.features
    if mining is None or features is None or mining.top_k is None:
        return None
    # All candidates are needed at once, because the first of equal candidates may be anywhere.
    candidates = batch.all_guides()
    own = batch.partition.indices(batch.image.device)

    def nearest(similarities: GuideSimilarities) -> Tensor:
        duplicates = duplicates_of(similarities, candidates)

        def similarity(rows: slice) -> Tensor:
            return features.similarity(similarities, rows, candidates, duplicates)

        return mine_top_k(similarity, own, blocks, mining, candidates=batch.partition.total)

    return batch.mined_lists(nearest)
