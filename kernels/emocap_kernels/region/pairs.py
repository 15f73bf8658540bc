"""The positives of any block of images in the local loss, drawn the same way in forward and in backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import even_blocks
from emocap_kernels.distributed.numbers import gather_rows
from emocap_kernels.mining import Mining, first_twins, nearest
from emocap_kernels.products import product
from emocap_kernels.region.problem import Block, RegionProblem
from emocap_kernels.targets import Masks, PairList, treated


@dataclass(frozen=True, slots=True)
class RegionPairs:
    """What decides the positives of a block of images, beside the sentences.

    Attributes:
        first: Global index of local image 0.
        owner: int64 [sentences], global index of the owner.
        mining: None if own sentences are the only positives.
        order: The local sentences sorted by image, int64.
        images: The local image of each in that order, int64.
        starts: Where each local image begins in that order; one more than there are images.
        longest: How many sentences may be compared with all others at once.
        by_image: With `top_k`: sentences that the local images reach.
        by_sentence: With `top_k`: local images that the sentences reach.
    """

    first: int
    owner: Tensor
    mining: Mining | None
    order: Tensor
    images: Tensor
    starts: tuple[int, ...]
    longest: int
    by_image: PairList | None = None
    by_sentence: PairList | None = None

    def targets(self, problem: RegionProblem, images: slice, block: Block) -> Masks:
        """For the local images `images` of `problem` against the sentences of `block`."""
        rows = torch.arange(images.start, images.stop, device=self.owner.device) + self.first
        known = self.owner[block.columns] == rows[:, None]
        if self.mining is None:
            return Masks(known, known)
        if self.by_image is not None and self.by_sentence is not None:
            by_image = self.by_image.mask(images, block.columns)
            by_sentence = self.by_sentence.mask(images, block.columns)
        else:
            by_image = by_sentence = self._above(problem, images, block, self.mining)
        return treated(known, by_image, by_sentence, self.mining.treatment)

    def _above(self, problem: RegionProblem, images: slice, block: Block, mining: Mining) -> Tensor:
        """Bool [images, sentences]: some own sentence is that similar. Symmetric: the same for both directions."""
        assert mining.threshold is not None
        number, width = images.stop - images.start, len(block.sentences)
        hits = torch.zeros(number, width, dtype=torch.int32, device=self.owner.device)
        mine = slice(self.starts[images.start], self.starts[images.stop])
        sentences = problem.sentences.detach()[self.order[mine]].to(block.sentences.dtype)
        rows = self.images[mine] - images.start
        for part in even_blocks(len(rows), self.longest):
            close = product(sentences[part], block.sentences.T) >= mining.threshold
            hits.index_add_(0, rows[part], close.int())
        return hits > 0


def pairs_of(problem: RegionProblem, longest: int) -> RegionPairs:
    """Fixes the positives; `top_k` lists are made here once, and travel between ranks."""
    images = problem.owner[problem.lines.own] - problem.images.first
    by_image = images.sort(stable=True)
    edges = torch.arange(problem.images.local + 1, device=images.device)
    starts = tuple(torch.searchsorted(by_image.values, edges).tolist())
    first, mining, order = problem.images.first, problem.mining, by_image.indices
    if mining is None or mining.top_k is None:
        return RegionPairs(first, problem.owner, mining, order, by_image.values, starts, longest)
    lists = _lists(problem, mining, longest)
    both = _by_image(lists, problem), _by_sentence(lists, problem)
    return RegionPairs(first, problem.owner, mining, order, by_image.values, starts, longest, *both)


def _lists(problem: RegionProblem, mining: Mining, longest: int) -> Tensor:
    """The sentences mined for each sentence, int64 [sentences, at most top_k], -1 for none; the same on all ranks."""
    assert mining.top_k is not None
    # In whole: of equal candidates the first one may be anywhere.
    sentences = problem.every_sentence()
    twins = first_twins(sentences)
    itself = problem.lines.indices(sentences.device)
    parts = [itself.new_empty(0, min(mining.top_k, problem.lines.total - 1))]
    for block in even_blocks(problem.lines.local, longest):
        similarity = product(sentences[itself[block]], sentences.T)
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
