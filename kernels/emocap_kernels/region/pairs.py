"""The positives of any block of images in the local loss, drawn the same way in forward and in backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import even_blocks
from emocap_kernels.distributed import gather_rows
from emocap_kernels.mining import Mining, first_twins, nearest
from emocap_kernels.region.problem import RegionProblem
from emocap_kernels.targets import Masks, PairList, treated


@dataclass(frozen=True, slots=True)
class RegionPairs:
    """Everything that decides the positives of a block of images.

    Attributes:
        first: Global index of local image 0.
        owner: int64 [sentences], global index of the owner.
        sentences: [sentences, width], without gradient.
        mining: None if own sentences are the only positives.
        own: Indices of the sentences of the local images, sorted by image, int64.
        starts: Where each local image begins in `own`; one more than there are images.
        longest: How many sentences may be compared with all others at once.
        by_image: With `top_k`: sentences that the local images reach.
        by_sentence: With `top_k`: local images that the sentences reach.
    """

    first: int
    owner: Tensor
    sentences: Tensor
    mining: Mining | None
    own: Tensor
    starts: tuple[int, ...]
    longest: int
    by_image: PairList | None = None
    by_sentence: PairList | None = None

    def targets(self, images: slice) -> Masks:
        """For the local images `images` against all sentences."""
        rows = torch.arange(images.start, images.stop, device=self.owner.device) + self.first
        known = self.owner == rows[:, None]
        if self.mining is None:
            return Masks(known, known)
        if self.by_image is not None and self.by_sentence is not None:
            by_image, by_sentence = self.by_image.mask(images), self.by_sentence.mask(images)
        else:
            by_image = by_sentence = self._above(images, self.mining)
        return treated(known, by_image, by_sentence, self.mining.treatment)

    def _above(self, images: slice, mining: Mining) -> Tensor:
        """Bool [images, sentences]: some own sentence is that similar. Symmetric: the same for both directions."""
        assert mining.threshold is not None
        number, width = images.stop - images.start, len(self.owner)
        hits = torch.zeros(number, width, dtype=torch.int32, device=self.owner.device)
        mine = self.own[self.starts[images.start] : self.starts[images.stop]]
        for part in even_blocks(len(mine), self.longest):
            lines = mine[part]
            close = self.sentences[lines] @ self.sentences.T >= mining.threshold
            hits.index_add_(0, self.owner[lines] - self.first - images.start, close.int())
        return hits > 0


def pairs_of(problem: RegionProblem, longest: int) -> RegionPairs:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    sentences = problem.sentences.detach()
    local = problem.owner[problem.lines.own]
    by_owner = local.sort(stable=True)
    edges = torch.arange(problem.images.local + 1, device=local.device) + problem.images.first
    starts = tuple(torch.searchsorted(by_owner.values, edges).tolist())
    own = by_owner.indices + problem.lines.first
    first, mining = problem.images.first, problem.mining
    if mining is None or mining.top_k is None:
        return RegionPairs(first, problem.owner, sentences, mining, own, starts, longest)
    lists = _lists(problem, sentences, mining, longest)
    by_image, by_sentence = _by_image(lists, problem), _by_sentence(lists, problem)
    return RegionPairs(first, problem.owner, sentences, mining, own, starts, longest, by_image, by_sentence)


def _lists(problem: RegionProblem, sentences: Tensor, mining: Mining, longest: int) -> Tensor:
    """The sentences mined for each sentence, int64 [sentences, at most top_k], -1 for none; the same on all ranks."""
    assert mining.top_k is not None
    twins = first_twins(sentences)
    itself = problem.lines.indices(sentences.device)
    parts = [itself.new_empty(0, min(mining.top_k, problem.lines.total - 1))]
    for block in even_blocks(problem.lines.local, longest):
        similarity = sentences[itself[block]] @ sentences.T
        if twins is not None:
            similarity = similarity[:, twins]
        found = nearest(similarity, itself[block], mining.top_k)
        if mining.threshold is not None:
            found.masked_fill_(similarity.gather(1, found) < mining.threshold, -1)
        parts.append(found)
    return gather_rows(torch.cat(parts), problem.lines, problem.ranks)


def _by_image(lists: Tensor, problem: RegionProblem) -> PairList:
    """Image i reaches m if m was mined for a sentence of i."""
    kept = lists.flatten() >= 0
    rows = (problem.owner - problem.images.first).repeat_interleave(lists.shape[1])
    return _listed(rows[kept], lists.flatten()[kept], problem)


def _by_sentence(lists: Tensor, problem: RegionProblem) -> PairList:
    """Sentence n reaches image i if a sentence of i was mined for n."""
    kept = lists.flatten() >= 0
    rows = problem.owner[lists.flatten()[kept]] - problem.images.first
    columns = torch.arange(len(lists), device=lists.device).repeat_interleave(lists.shape[1])
    return _listed(rows, columns[kept], problem)


def _listed(rows: Tensor, columns: Tensor, problem: RegionProblem) -> PairList:
    return PairList.of(rows, columns, height=problem.images.local, width=problem.lines.total)
