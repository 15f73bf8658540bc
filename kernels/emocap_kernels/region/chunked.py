"""The same loss in bounded memory: tiles of (some images' patches) x (some sentences), made twice and kept never.

Forward keeps a few numbers of each anchor. Backward makes the scores of each tile again in the same shapes, takes their
gradient from those numbers, and carries it through the pooling into patches and sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emocap_kernels.blocks import BLOCK_BYTES, even_blocks
from emocap_kernels.distributed import Ranks, Span, sum_over
from emocap_kernels.precision import full_precision
from emocap_kernels.region.pairs import RegionPairs, pairs_of
from emocap_kernels.region.problem import RegionProblem, weights
from emocap_kernels.result import Directions, LossResult
from emocap_kernels.softmax import Anchors, Columns, Shares, joined, row_anchors, score_gradient, shares

# Sentences of a tile while there are more images to put into it: long enough for a fast matrix product.
TILE_SENTENCES = 1024


@dataclass(frozen=True, slots=True)
class _Plan:
    pairs: RegionPairs
    images: list[slice]
    sentences: list[slice]
    sharpness: float
    mask: Tensor | None
    row_weight: Tensor
    anchors: Tensor
    span: Span
    lines: Span
    ranks: Ranks

    def kept(self, images: slice) -> Tensor | None:
        return None if self.mask is None else self.mask[images]


def evaluate(problem: RegionProblem, *, block_bytes: int = BLOCK_BYTES) -> LossResult:
    """The loss of a problem whose rank holds any of the images; `block_bytes` bounds one tile of similarities."""
    with torch.no_grad():
        plan = _planned(problem, block_bytes)
    loss, seen = _RegionNCE.apply(problem.patches, problem.sentences, problem.scale, plan)  # pyright: ignore[reportGeneralTypeIssues]
    image_to_text, text_to_image, positives, by_image, by_text = seen.unbind()
    return LossResult(loss, image_to_text, text_to_image, positives, Directions(by_image, by_text))


def _planned(problem: RegionProblem, block_bytes: int) -> _Plan:
    numbers = max(1, block_bytes // problem.patches.element_size())
    patches, total = problem.patches.shape[1], problem.lines.total
    together = min(numbers // (patches * min(total, TILE_SENTENCES)), numbers // total)
    images = even_blocks(problem.images.local, together)
    tallest = max((block.stop - block.start for block in images), default=1)
    anchors = problem.anchors()
    row_weight = anchors[problem.images.own].to(problem.patches.dtype) / anchors.sum()
    return _Plan(
        pairs=pairs_of(problem, longest=max(1, numbers // total)),
        images=images,
        sentences=even_blocks(total, numbers // (patches * tallest)),
        sharpness=problem.sharpness,
        mask=problem.patch_mask,
        row_weight=row_weight,
        anchors=anchors,
        span=problem.images,
        lines=problem.lines,
        ranks=problem.ranks,
    )


class _RegionNCE(Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        rows, columns = _sweep(patches, sentences, scale, plan)
        ctx.plan = plan
        ctx.rows, ctx.columns = shares(rows, plan.row_weight), shares(columns, 1.0 / plan.lines.total)
        ctx.save_for_backward(patches, sentences, scale, plan.pairs.owner, plan.mask)
        seen = _seen(rows, columns, plan).to(patches.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        patches, sentences, scale = ctx.saved_tensors[:3]
        with full_precision(patches.device):
            parts = _Gradients(ctx, patches, sentences)
            for images in ctx.plan.images:
                parts.add(images, scale)
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        share = grad_outputs[0] * (ctx.plan.ranks.size / 2)
        by_scale = parts.by_scale.to(scale.dtype) * share
        return _times(parts.by_patch, share * scale), _times(parts.by_sentence, share * scale), by_scale, None


def _times(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.mul_(factor)


def _sweep(patches: Tensor, sentences: Tensor, scale: Tensor, plan: _Plan) -> tuple[Anchors, Anchors]:
    """Images of this rank and sentences of the whole batch."""
    parts: list[Anchors] = []
    columns = Columns(len(sentences), like=sentences)
    for images in plan.images:
        score = patches.new_empty(images.stop - images.start, len(sentences))
        for part in plan.sentences:
            similarity = _similarity(patches[images], sentences[part])
            attention = weights(similarity, plan.sharpness, plan.kept(images))
            score[:, part] = attention.mul_(similarity).sum(-1).T
        score *= scale
        targets = plan.pairs.targets(images)
        parts.append(row_anchors(score, targets))
        columns.add(score, targets, first=plan.span.first + images.start)
    return joined(parts, sentences), columns.over(plan.ranks)


def _similarity(patches: Tensor, sentences: Tensor) -> Tensor:
    """[sentences, images, patches]: one matrix product, and the softmax over patches runs along memory."""
    return (sentences @ patches.flatten(0, 1).T).view(len(sentences), *patches.shape[:2])


class _Gradients:
    """Sums, over tiles, of twice the gradient in patches / scale, sentences / scale and scale."""

    def __init__(self, ctx: Any, patches: Tensor, sentences: Tensor) -> None:
        self._plan: _Plan = ctx.plan
        self._rows: Shares = ctx.rows
        self._columns: Shares = ctx.columns
        self._patches, self._sentences = patches, sentences
        self.by_patch = torch.zeros_like(patches) if ctx.needs_input_grad[0] else None
        self.by_sentence = torch.zeros_like(sentences) if ctx.needs_input_grad[1] else None
        self.by_scale = torch.zeros((), dtype=torch.float64, device=patches.device)

    def add(self, images: slice, scale: Tensor) -> None:
        targets = self._plan.pairs.targets(images)
        rows = self._rows.part(images)
        for part in self._plan.sentences:
            similarity = _similarity(self._patches[images], self._sentences[part])
            attention = weights(similarity, self._plan.sharpness, self._plan.kept(images))
            pooled = (attention * similarity).sum(-1)
            score = pooled.T * scale
            gradient = score_gradient(score, targets.columns(part), rows, self._columns.part(part)).T
            self.by_scale += (gradient * pooled).sum()
            # d pooled / d similarity = attention * (1 + sharpness * (similarity - pooled))
            similarity.sub_(pooled[:, :, None]).mul_(attention)
            attention.add_(similarity, alpha=self._plan.sharpness).mul_(gradient[:, :, None])
            self._carry(attention.flatten(1), images, part)

    def _carry(self, gradient: Tensor, images: slice, part: slice) -> None:
        """From similarities, [sentences, images * patches], into both inputs."""
        if self.by_patch is not None:
            self.by_patch[images].flatten(0, 1).addmm_(gradient.T, self._sentences[part])
        if self.by_sentence is not None:
            self.by_sentence[part].addmm_(gradient, self._patches[images].flatten(0, 1))


def _seen(rows: Anchors, columns: Anchors, plan: _Plan) -> Tensor:
    """Losses of both directions, mean number of positives, recall of both directions, float64 [5]."""
    weight, own = plan.row_weight.double(), plan.lines.own
    share = 1.0 / plan.lines.total
    found_sentence = plan.pairs.owner[rows.best] == plan.span.indices(weight.device)
    found_image = columns.best[own] == plan.pairs.owner[own]
    sums = torch.stack(
        [
            (rows.row_losses() * weight).sum(),
            columns.column_losses(own).sum() * share,
            ((rows.count * weight).sum() + columns.count[own].double().sum() * share) / 2,
            (found_sentence * weight).sum(),
            found_image.double().sum() * share,
        ]
    )
    return sum_over(sums, plan.ranks)
