"""The positives of any block of images, drawn the same way in forward and in backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.problem import (
    IMAGE_ANCHORS,
    TEXT_ANCHORS,
    Block,
    Features,
    Problem,
    Products,
    Side,
    flipped,
    twins_of,
)
from emocap_kernels.distributed.numbers import gather_rows
from emocap_kernels.mining import Mining, nearest
from emocap_kernels.targets import Diagonal, Masks, PairList, Targets, treated


@dataclass(frozen=True, slots=True)
class Pairs:
    """What decides the positives, beside the guide features.

    Attributes:
        first: Global index of local row 0.
        zeros: [total], of the type of the scores.
        ids: int64 [total] or None.
        mining: None if only known pairs are positives.
        by_image: With `top_k`: the mined pairs of the local images.
        by_text: With `top_k`: the mined pairs of all texts that fall on local images.
    """

    first: int
    zeros: Tensor
    ids: Tensor | None
    mining: Mining | None
    by_image: PairList | None = None
    by_text: PairList | None = None

    def targets(self, rows: slice, block: Block, cosine: Tensor, features: Features | None) -> Targets:
        """For the local images `rows`, whose cosines with the texts of `block` are `cosine` [rows, texts]."""
        if self.mining is None or features is None:
            if self.ids is None:
                own = self.first + rows.start - block.columns.start
                return Diagonal(own, rows.stop - rows.start, self.zeros[block.columns])
            known = self._known(rows, block.columns)
            return Masks(known, known)
        by_image, by_text = self._mined(rows, block, cosine, self.mining, features)
        return treated(self._known(rows, block.columns), by_image, by_text, self.mining.treatment)

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
        if self.by_image is not None and self.by_text is not None:
            return self.by_image.mask(rows, block.columns), self.by_text.mask(rows, block.columns)
        assert mining.threshold is not None
        if mining.guide == "joint" and features.is_logit:
            close = cosine >= mining.threshold
            return close, close
        images, texts = IMAGE_ANCHORS[mining.guide], flipped(TEXT_ANCHORS[mining.guide])
        by_image = features.similarity(images, rows, block.every) >= mining.threshold
        if texts == images:
            return by_image, by_image
        return by_image, features.similarity(texts, rows, block.every) >= mining.threshold


def pairs_of(problem: Problem, blocks: list[slice]) -> Pairs:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    zeros = problem.scale.new_zeros(problem.span.total)
    mining, features = problem.mining, problem.features
    if mining is None or features is None or mining.top_k is None:
        return Pairs(problem.span.first, zeros, problem.ids, mining)
    images, texts = IMAGE_ANCHORS[mining.guide], TEXT_ANCHORS[mining.guide]
    # In whole: of equal candidates the first one may be anywhere.
    every = problem.everybody()
    lists = _lists(problem, mining, features, images, every, blocks)
    text_lists = lists if texts == images else _lists(problem, mining, features, texts, every, blocks)
    every_text = gather_rows(text_lists, problem.span, problem.ranks)
    by_image, by_text = _by_image(lists, problem), _by_text(every_text, problem)
    return Pairs(problem.span.first, zeros, problem.ids, mining, by_image, by_text)


def _lists(
    problem: Problem,
    mining: Mining,
    features: Features,
    products: Products,
    every: Mapping[Side, Tensor],
    blocks: list[slice],
) -> Tensor:
    """The mined candidates of each local anchor, int64 [local, at most top_k], -1 for none."""
    assert mining.top_k is not None
    twins = twins_of(products, every)
    own = problem.span.indices(problem.image.device)
    parts = [own.new_empty(0, max(0, min(mining.top_k, problem.span.total - 1)))]
    for rows in blocks:
        similarity = features.similarity_of_twins(products, rows, every, twins)
        found = nearest(similarity, own[rows], mining.top_k)
        if mining.threshold is not None:
            found.masked_fill_(similarity.gather(1, found) < mining.threshold, -1)
        parts.append(found)
    return torch.cat(parts)


def _by_image(lists: Tensor, problem: Problem) -> PairList:
    rows = torch.arange(len(lists), device=lists.device).repeat_interleave(lists.shape[1])
    return _listed(rows, lists.flatten(), problem, kept=lists.flatten() >= 0)


def _by_text(lists: Tensor, problem: Problem) -> PairList:
    columns = torch.arange(len(lists), device=lists.device).repeat_interleave(lists.shape[1])
    return _listed(lists.flatten() - problem.span.first, columns, problem, kept=lists.flatten() >= 0)


def _listed(rows: Tensor, columns: Tensor, problem: Problem, *, kept: Tensor) -> PairList:
    return PairList.of(rows[kept], columns[kept], height=problem.span.local, width=problem.span.total)
