"""The positives of any block of images in the local loss, drawn the same way in forward and in backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emocap_kernels.distributed.numbers import gather_rows
from emocap_kernels.mining import Mining
from emocap_kernels.positives import MinedLists, treated
from emocap_kernels.region.problem import Block, RegionProblem
from emocap_kernels.targets import Masks


class Comparison(Protocol):
    """How a backend compares the sentences of its images with others."""

    def reached(self, problem: RegionProblem, images: slice, block: Block, threshold: float) -> Tensor:
        """Bool [images, sentences of block]: whether some own sentence of the image is at least that similar."""
        ...

    def nearest(self, problem: RegionProblem, mining: Mining) -> Tensor:
        """The sentences mined for each local sentence, global indices [local sentences, at most top_k], -1 for none."""
        ...


@dataclass(frozen=True, slots=True)
class OwnSentences:
    """The sentences of this rank in the order of their images.

    Attributes:
        order: The local sentences sorted by image, int64.
        images: The local image of each in that order, int64.
        starts: Where each local image begins in that order, int64 [local images + 1].
    """

    order: Tensor
    images: Tensor
    starts: Tensor

    @staticmethod
    def of(problem: RegionProblem) -> OwnSentences:
        images = problem.owner[problem.lines.own] - problem.images.first
        by_image = images.sort(stable=True)
        edges = torch.arange(problem.images.local + 1, device=images.device)
        return OwnSentences(by_image.indices, by_image.values, torch.searchsorted(by_image.values, edges))


@dataclass(frozen=True, slots=True)
class RegionPositives:
    """What decides the positives of any images and sentences, beside the sentences themselves.

    Attributes:
        owner: int64 [total sentences], global index of the owner.
        mining: None if own sentences are the only positives.
        comparison: The backend's.
        lists: With `top_k`: the mined sentences.
    """

    owner: Tensor
    mining: Mining | None
    comparison: Comparison
    lists: MinedLists | None

    @staticmethod
    def of(problem: RegionProblem, comparison: Comparison) -> RegionPositives:
        """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
        return RegionPositives(problem.owner, problem.mining, comparison, _lists(problem, comparison))

    def targets(self, problem: RegionProblem, images: slice, block: Block) -> Masks:
        """For the local images `images` of `problem` against the sentences of `block`."""
        rows = torch.arange(images.start, images.stop, device=self.owner.device) + problem.images.first
        known = self.owner[block.columns] == rows[:, None]
        if self.mining is None:
            return Masks(known, known)
        by_image, by_sentence = self._mined(problem, images, block, self.mining)
        return treated(known, by_image, by_sentence, self.mining)

    def _mined(self, problem: RegionProblem, images: slice, block: Block, mining: Mining) -> tuple[Tensor, Tensor]:
        """Bool [images, sentences] each: what images and what sentences mined."""
        if self.lists is not None:
            return self.lists.masks(images, block.columns)
        assert mining.threshold is not None
        # Similarity is symmetric: what reaches a sentence is what the sentence reaches.
        reached = self.comparison.reached(problem, images, block, mining.threshold)
        return reached, reached


def _lists(problem: RegionProblem, comparison: Comparison) -> MinedLists | None:
    """Image i mines what was mined for its sentences; sentence n mines the owners of what was mined for it."""
    if problem.mining is None or problem.mining.top_k is None:
        return None
    lines = problem.lines
    mined = gather_rows(comparison.nearest(problem, problem.mining), lines, problem.ranks).long()
    owners = torch.where(mined >= 0, problem.owner[mined.clamp(min=0)], -1)
    return MinedLists(mined[lines.own], owners, problem.images.first, row_of=problem.owner[lines.own])
