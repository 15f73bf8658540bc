"""Cuts the scores of the chunked backend into tiles, and computes the targets of each tile.

The targets of a tile are computed the same way in forward and in backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.contrastive.batch import ContrastiveBatch, GuideFeatures, TextBlock, duplicates_of
from emocap_kernels.mining import Mining
from emocap_kernels.positives import GuideSimilarities, MinedLists, apply_treatment, mine_top_k, tile_similarities
from emocap_kernels.targets import DiagonalTargets, MaskTargets, Targets


@dataclass(frozen=True, slots=True)
class Tiling:
    """Holds the slices that cut the score matrix, and everything that determines positives except the guide features.

    Attributes:
        rows: Slices of the local images. The images of a slice and the texts of a block form a tile.
        first: Global index of local row 0.
        zeros: Zeros, [total], in the type of the scores.
        ids: int64 [total] or None.
        mining: None if only known pairs are positives.
        mined_by_score: See `ContrastiveBatch.mined_by_score`.
        lists: The mined candidates, if the rule has `top_k`.
    """

    rows: list[slice]
    first: int
    zeros: Tensor
    ids: Tensor | None
    mining: Mining | None
    mined_by_score: bool
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
        row_bytes = batch.scale.element_size() * max(1, batch.partition.total)
        # Masks, guide similarities and a teacher's scores double the memory that a tile of scores needs.
        copies = 1 if batch.features is None else 2
        rows = even_blocks(batch.partition.local, most // (row_bytes * copies))
        with torch.no_grad():
            zeros = batch.scale.new_zeros(batch.partition.total)
            lists = _mine_lists(batch, rows)
            return Tiling(rows, batch.partition.first, zeros, batch.ids, batch.mining, batch.mined_by_score, lists)

    def targets(self, rows: slice, block: TextBlock, cosine: Tensor, features: GuideFeatures | None) -> Targets:
        """Returns the targets of one tile.

        Args:
            rows: Local images.
            block: The texts.
            cosine: [rows, texts], the cosines from which the scores are computed.
            features: The guide features of this rank, if any.
        """
        if self.mining is None or features is None:
            if self.ids is None:
                own = self.first + rows.start - block.columns.start
                return DiagonalTargets(own, rows.stop - rows.start, self.zeros[block.columns])
            known = self._known(rows, block.columns)
            return MaskTargets(known, known)
        by_image, by_text = self._mined(rows, block, cosine, self.mining, features)
        return apply_treatment(self._known(rows, block.columns), by_image, by_text, self.mining)

    def _known(self, rows: slice, columns: slice) -> Tensor:
        if self.ids is not None:
            return self.ids[self.first + rows.start : self.first + rows.stop, None] == self.ids[columns]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        known = torch.zeros(height, width, dtype=torch.bool, device=self.zeros.device)
        known.diagonal(self.first + rows.start - columns.start).fill_(True)
        return known

    def _mined(
        self, rows: slice, block: TextBlock, cosine: Tensor, mining: Mining, features: GuideFeatures
    ) -> tuple[Tensor, Tensor]:
        """Returns two bool masks, [rows, texts]: pairs mined for image anchors, and pairs mined for text anchors."""
        if self.lists is not None:
            return self.lists.masks(rows, block.columns)
        assert mining.threshold is not None
        if self.mined_by_score:
            close = cosine >= mining.threshold
            return close, close
        similar = [features.similarity(each, rows, block.guides) for each in tile_similarities(mining.guide)]
        close = [each >= mining.threshold for each in similar]
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
            return features.tie_safe_similarity(similarities, rows, candidates, duplicates)

        return mine_top_k(similarity, own, blocks, mining, candidates=batch.partition.total)

    return batch.mined_lists(nearest)
