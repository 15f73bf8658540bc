"""The same loss in bounded memory: tiles of (some images' patches) x (some sentences), made twice and kept never.

Forward keeps a few numbers of each anchor. Backward makes the scores of each tile again in the same shapes, takes their
gradient from those numbers, and carries it through the pooling into patches and sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.distributed.columns import Sums
from emocap_kernels.mining import Mining, first_twins
from emocap_kernels.positives import nearest_lists
from emocap_kernels.precision import full_precision
from emocap_kernels.products import add_product_, product, similarity_gain
from emocap_kernels.region.outcome import Weights, means, outcome, weights_of
from emocap_kernels.region.pooling import weights
from emocap_kernels.region.positives import OwnSentences, RegionPositives
from emocap_kernels.region.problem import Block, RegionProblem
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import RunningBoth, Shares, score_gradient
from emocap_kernels.transforms import first_order

# Sentences of a tile while there are more images to put into it: long enough for a fast matrix product.
TILE_SENTENCES = 1024


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one rank walks: images together, and at most `longest` sentences beside them."""

    problem: RegionProblem
    positives: RegionPositives
    images: list[slice]
    longest: int
    weights: Weights

    def tiles(self, block: Block) -> list[slice]:
        """Of the sentences of `block`."""
        return even_blocks(len(block.sentences), self.longest)

    def similarity(self, images: slice, sentences: Tensor) -> Tensor:
        """[sentences, images, patches]: one matrix product, and the softmax over patches runs along memory."""
        patches = self.problem.patches[images]
        return product(sentences, patches.flatten(0, 1).T).view(len(sentences), *patches.shape[:2])

    def attention(self, similarity: Tensor, images: slice) -> Tensor:
        return weights(similarity, self.problem.sharpness, self.problem.kept(images))


def evaluate(problem: RegionProblem, *, block_bytes: int | None = None) -> LossResult:
    """The loss of a problem whose rank holds any of the images.

    Args:
        problem: Vectors of any type; half precision is multiplied as it is on a GPU.
        block_bytes: Bounds one tile of similarities; None is the default of the device.
    """
    with torch.no_grad():
        plan = _planned(problem, block_bytes_on(problem.patches.device) if block_bytes is None else block_bytes)
    loss, seen = _RegionNCE.apply(problem.patches, problem.sentences, problem.scale, plan)  # pyright: ignore[reportGeneralTypeIssues]
    return outcome(loss, seen)


def _planned(problem: RegionProblem, block_bytes: int) -> _Plan:
    numbers = max(1, block_bytes // problem.scale.element_size())
    patches, total = problem.patches.shape[1], problem.lines.total
    together = min(numbers // (patches * min(total, TILE_SENTENCES)), numbers // total)
    images = even_blocks(problem.images.local, together)
    tallest = max((block.stop - block.start for block in images), default=1)
    positives = RegionPositives.of(problem, _Products.of(problem, longest=max(1, numbers // total)))
    return _Plan(problem, positives, images, numbers // (patches * tallest), weights_of(problem))


@dataclass(frozen=True, slots=True)
class _Products:
    """Compares sentences by products of torch.

    Attributes:
        own: The sentences of this rank.
        starts: `own.starts`, on the host.
        longest: How many sentences may be compared with all others at once.
    """

    own: OwnSentences
    starts: tuple[int, ...]
    longest: int

    @staticmethod
    def of(problem: RegionProblem, *, longest: int) -> _Products:
        own = OwnSentences.of(problem)
        return _Products(own, tuple(own.starts.tolist()), longest)

    def reached(self, problem: RegionProblem, images: slice, block: Block, threshold: float) -> Tensor:
        """See `Comparison`."""
        number, width = images.stop - images.start, len(block.sentences)
        hits = torch.zeros(number, width, dtype=torch.int32, device=block.sentences.device)
        mine = slice(self.starts[images.start], self.starts[images.stop])
        sentences = problem.sentences.detach()[self.own.order[mine]].to(block.sentences.dtype)
        rows = self.own.images[mine] - images.start
        for part in even_blocks(len(rows), self.longest):
            close = product(sentences[part], block.sentences.T) >= threshold
            hits.index_add_(0, rows[part], close.int())
        return hits > 0

    def nearest(self, problem: RegionProblem, mining: Mining) -> Tensor:
        """See `Comparison`."""
        # In whole: of equal candidates the first one may be anywhere.
        sentences = problem.every_sentence()
        twins = first_twins(sentences)
        itself = problem.lines.indices(sentences.device)

        def similarity(block: slice) -> Tensor:
            found = product(sentences[itself[block]], sentences.T)
            return found if twins is None else found[:, twins]

        blocks = even_blocks(problem.lines.local, self.longest)
        return nearest_lists(similarity, itself, blocks, mining, candidates=problem.lines.total)


class _RegionNCE(Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        # What autograd differentiates; the plan's problem holds it.
        del patches, sentences
        problem = plan.problem
        both = _running(plan).over(problem.ranks)
        left, vectors = problem.put_away()
        ctx.plan = replace(plan, problem=left)
        ctx.rows, ctx.columns = plan.weights.shares(both)
        ctx.save_for_backward(scale, problem.owner, problem.patch_mask, *vectors)
        seen = means(problem, both, plan.weights).to(scale.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @first_order
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        scale, _, _, *vectors = ctx.saved_tensors
        problem: RegionProblem = ctx.plan.problem.taken_out(vectors)
        with full_precision(scale.device):
            sums = _Gradients(replace(ctx.plan, problem=problem), ctx.rows, ctx.columns, ctx.needs_input_grad)
            sums.run()
        share = ctx.plan.weights.factor(grad_outputs[0], problem.ranks)
        return *sums.finished(share * scale), sums.by_scale.to(scale.dtype) * share, None


def _running(plan: _Plan) -> RunningBoth:
    """Images of this rank and sentences of the whole batch, once all tiles went by."""
    problem = plan.problem
    running = RunningBoth(problem.images.local, problem.lines.total, first=problem.images.first, like=problem.scale)
    for block in problem.blocks():
        for images in plan.images:
            score = problem.scale.new_empty(images.stop - images.start, len(block.sentences))
            for part in plan.tiles(block):
                similarity = plan.similarity(images, block.sentences[part])
                score[:, part] = plan.attention(similarity, images).mul_(similarity).sum(-1).T
            score *= problem.scale
            running.add(score, plan.positives.targets(problem, images, block), images, block.columns)
    return running


class _Gradients:
    """Sums, over tiles, of 2 A times the gradient in patches / scale, sentences / scale and scale; A image anchors."""

    def __init__(self, plan: _Plan, rows: Shares, columns: Shares, needs: tuple[bool, ...]) -> None:
        self._plan, self._rows, self._columns = plan, rows, columns
        problem, wide = plan.problem, plan.problem.scale.dtype
        like = problem.patches.new_empty(0, problem.patches.shape[2], dtype=wide)
        self.by_patch = torch.zeros_like(problem.patches, dtype=wide) if needs[0] else None
        self.by_sentence = Sums(problem.columns, like, problem.sentences.dtype) if needs[1] else None
        self._gain = similarity_gain(problem.patches.dtype)
        self.by_scale = torch.zeros((), dtype=torch.float64, device=like.device)

    def run(self) -> None:
        for block in self._plan.problem.blocks(self.by_sentence):
            wide = self._plan.problem.scale.dtype
            part = torch.zeros_like(block.sentences, dtype=wide) if self.by_sentence is not None else None
            for images in self._plan.images:
                self._add(images, block, part)
            if self.by_sentence is not None and part is not None:
                self.by_sentence.add(block.columns, part)

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of patches and sentences in their own types; uses the sums up."""
        problem = self._plan.problem
        by_sentence = None if self.by_sentence is None else self.by_sentence.own()
        return (
            None if self.by_patch is None else self.by_patch.mul_(factor).to(problem.patches.dtype),
            None if by_sentence is None else by_sentence.mul_(factor).to(problem.sentences.dtype),
        )

    def _add(self, images: slice, block: Block, by_sentence: Tensor | None) -> None:
        problem = self._plan.problem
        targets = self._plan.positives.targets(problem, images, block)
        rows, columns = self._rows.part(images), self._columns.part(block.columns)
        for part in self._plan.tiles(block):
            similarity = self._plan.similarity(images, block.sentences[part])
            attention = self._plan.attention(similarity, images)
            pooled = (attention * similarity).sum(-1)
            score = pooled.T * problem.scale
            gradient = score_gradient(score, targets.columns(part), rows, columns.part(part)).T
            self.by_scale += (gradient * pooled).sum()
            # d pooled / d similarity = attention * (1 + sharpness * (similarity - pooled))
            similarity.sub_(pooled[:, :, None]).mul_(attention)
            attention.add_(similarity, alpha=problem.sharpness).mul_(gradient[:, :, None])
            carried = attention.flatten(1)
            if self.by_patch is not None:
                rows_of = self.by_patch[images].flatten(0, 1)
                add_product_(rows_of, carried.T, block.sentences[part], stored_times=self._gain)
            if by_sentence is not None:
                vectors = problem.patches[images].flatten(0, 1)
                add_product_(by_sentence[part], carried, vectors, stored_times=self._gain)
