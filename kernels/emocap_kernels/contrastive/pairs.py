"""The positives of any block of images, drawn the same way in forward and in backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.problem import Block, Features, Problem, twins_of
from emocap_kernels.mining import Mining
from emocap_kernels.positives import MinedLists, Products, nearest_lists, tile_products, treated
from emocap_kernels.targets import Diagonal, Masks, Targets


@dataclass(frozen=True, slots=True)
class Pairs:
    """What decides the positives, beside the guide features.

    Attributes:
        first: Global index of local row 0.
        zeros: [total], of the type of the scores.
        ids: int64 [total] or None.
        mining: None if only known pairs are positives.
        mined_by_score: See `Problem.mined_by_score`.
        lists: With `top_k`: the mined candidates.
    """

    first: int
    zeros: Tensor
    ids: Tensor | None
    mining: Mining | None
    mined_by_score: bool
    lists: MinedLists | None

    def targets(self, rows: slice, block: Block, cosine: Tensor, features: Features | None) -> Targets:
        """For the local images `rows`, whose cosines with the texts of `block` are `cosine` [rows, texts]."""
        if self.mining is None or features is None:
            if self.ids is None:
                own = self.first + rows.start - block.columns.start
                return Diagonal(own, rows.stop - rows.start, self.zeros[block.columns])
            known = self._known(rows, block.columns)
            return Masks(known, known)
        by_image, by_text = self._mined(rows, block, cosine, self.mining, features)
        return treated(self._known(rows, block.columns), by_image, by_text, self.mining)

    def _known(self, rows: slice, columns: slice) -> Tensor:
        if self.ids is not None:
            return self.ids[self.first + rows.start : self.first + rows.stop, None] == self.ids[columns]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        known = torch.zeros(height, width, dtype=torch.bool, device=self.zeros.device)
        known.diagonal(self.first + rows.start - columns.start).fill_(True)
        return known

    def _mined(
        self, rows: slice, block: Block, cosine: Tensor, mining: Mining, features: Features
    ) -> tuple[Tensor, Tensor]:
        """Bool [rows, texts] each: what image anchors and what text anchors mined."""
        if self.lists is not None:
            return self.lists.masks(rows, block.columns)
        assert mining.threshold is not None
        if self.mined_by_score:
            close = cosine >= mining.threshold
            return close, close
        similar = [features.similarity(each, rows, block.every) for each in tile_products(mining.guide)]
        close = [each >= mining.threshold for each in similar]
        return close[0], close[-1]


def pairs_of(problem: Problem, blocks: list[slice]) -> Pairs:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    zeros = problem.scale.new_zeros(problem.span.total)
    lists = _lists(problem, blocks)
    return Pairs(problem.span.first, zeros, problem.ids, problem.mining, problem.mined_by_score, lists)


def _lists(problem: Problem, blocks: list[slice]) -> MinedLists | None:
    mining, features = problem.mining, problem.features
    if mining is None or features is None or mining.top_k is None:
        return None
    # In whole: of equal candidates the first one may be anywhere.
    every = problem.everybody()
    own = problem.span.indices(problem.image.device)

    def mined(products: Products) -> Tensor:
        twins = twins_of(products, every)

        def similarity(rows: slice) -> Tensor:
            return features.similarity_of_twins(products, rows, every, twins)

        return nearest_lists(similarity, own, blocks, mining, candidates=problem.span.total)

    return problem.mined_lists(mined)
