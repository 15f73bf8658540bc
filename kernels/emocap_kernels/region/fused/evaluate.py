r"""The local loss by fused kernels: every image's patches against every sentence, and no patch-sentence matrix.

1. *Pooling* (`kernels/pooling.py`): the similarities of a sentence with all patches of an image lie in registers, are
   weighed, and leave one score. Scores of some images with a block of sentences are all that reaches memory.
2. *Sums*: the losses need sums over the scores and their positives, in both directions; a score stands for hundreds of
   products, so these sums are plain tensor operations, the same that `chunked` uses.
3. *Gradient*: similarities are made again in registers, the gradient of a score follows from the sums of its anchors
   and from a byte of marks, and what is left for each patch and sentence goes to a bounded chunk \(H\). Two products of
   the library carry it on: \(\partial L/\partial\,\mathrm{patches} \mathrel{+}= H^\top U\) and
   \(\partial L/\partial U \mathrel{+}= H\,\mathrm{patches}\).

With b images of P patches and N sentences of width D that is 8 b P N D floating point operations, the least of which
nothing is stored; 10 where an image has more patches than registers hold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.distributed.columns import Sums
from emocap_kernels.fused.descriptors import ALIGNMENT, aligned, tiled
from emocap_kernels.fused.launch import launch
from emocap_kernels.precision import full_precision
from emocap_kernels.products import add_product_, product, similarity_gain
from emocap_kernels.region.fused.kernels.pooling import LOG2_E, carry_kernel, pool_kernel
from emocap_kernels.region.fused.marks import KernelComparison, packed
from emocap_kernels.region.fused.shapes import (
    RegionShape,
    gradient_chunks,
    image_strips,
    region_shape,
    score_chunks,
)
from emocap_kernels.region.outcome import Weights, means, outcome, weights_of
from emocap_kernels.region.positives import RegionPositives
from emocap_kernels.region.problem import Block, RegionProblem
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import RunningBoth, Shares
from emocap_kernels.transforms import first_order


@dataclass(frozen=True, slots=True)
class _Walk:
    """How one rank walks over its problem."""

    problem: RegionProblem
    positives: RegionPositives
    shape: RegionShape
    weights: Weights

    @property
    def slope(self) -> float:
        return self.problem.sharpness * LOG2_E.value

    def patch_tiles(self, patches: Tensor) -> list[TensorDescriptor | None]:
        """Of some images, [images, patches, width]: a tile for each piece."""
        flat = aligned(patches.flatten(0, 1))
        return [tiled(flat, size, self.shape.depth) if size > 1 else None for size in self.shape.pieces]

    def sentence_tiles(self, sentences: Tensor) -> TensorDescriptor:
        return tiled(aligned(sentences), self.shape.sentences, self.shape.depth)

    def options(self) -> dict[str, int | str | bool]:
        return {
            "nP": self.problem.patches.shape[1],
            "MASKED": self.problem.patch_mask is not None,
            **self.shape.options(),
        }

    def kept(self, images: slice) -> Tensor | None:
        kept = self.problem.kept(images)
        return None if kept is None else kept.to(torch.uint8).contiguous()


def evaluate(problem: RegionProblem) -> LossResult:
    """The loss of a problem whose rank holds any of the images, in float32 or a half precision."""
    # Triton launches on the current device, which need not be that of the inputs.
    with torch.cuda.device_of(problem.patches):
        with torch.no_grad():
            _, patches, _ = problem.patches.shape
            shape = region_shape(patches, problem.patches.dtype, problem.patches.device)
            positives = RegionPositives.of(problem, KernelComparison.of(problem))
            walk = _Walk(problem, positives, shape, weights_of(problem))
        loss, seen = _RegionNCE.apply(problem.patches, problem.sentences, problem.scale, walk)  # pyright: ignore[reportGeneralTypeIssues]
        return outcome(loss, seen)


class _RegionNCE(Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, walk: _Walk) -> tuple[Tensor, Tensor]:
        # What autograd differentiates; the walk's problem holds it.
        del patches, sentences
        problem = walk.problem
        both = _running(walk).over(problem.ranks)
        lines = [_lines(each) for each in walk.weights.shares(both)]
        left, vectors = problem.put_away()
        ctx.walk = replace(walk, problem=left)
        ctx.save_for_backward(scale, *lines, problem.owner, problem.patch_mask, *vectors)
        seen = means(problem, both, walk.weights).to(scale.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @first_order
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        scale, row_lines, column_lines, _, _, *vectors = ctx.saved_tensors
        problem: RegionProblem = ctx.walk.problem.taken_out(vectors)
        walk = replace(ctx.walk, problem=problem)
        share = walk.weights.factor(grad_outputs[0], problem.ranks)
        with full_precision(scale.device), torch.cuda.device_of(scale):
            gradients = _Gradients(walk, (row_lines, column_lines), share * scale, ctx.needs_input_grad)
            gradients.run()
            by_patch, by_sentence = gradients.finished()
        return by_patch, by_sentence, gradients.by_scale.to(scale.dtype) * share, None


def _running(walk: _Walk) -> RunningBoth:
    """Images of this rank and sentences of the whole batch, once all scores went by."""
    problem = walk.problem
    running = RunningBoth(problem.images.local, problem.lines.total, first=problem.images.first, like=problem.scale)
    for block in problem.blocks():
        for images in score_chunks(problem.images.local, len(block.sentences)):
            score = _scores(walk, images, block)
            running.add(score, walk.positives.targets(problem, images, block), images, block.columns)
    return running


def _scores(walk: _Walk, images: slice, block: Block) -> Tensor:
    """float32 [images, sentences]."""
    height, width = images.stop - images.start, len(block.sentences)
    score = block.sentences.new_empty(height, width, dtype=torch.float32)
    number, strip = image_strips(height, width, walk.shape)
    launch(
        pool_kernel,
        (ceil_div(width, walk.shape.sentences), number),
        walk.sentence_tiles(block.sentences),
        *walk.patch_tiles(walk.problem.patches[images]),
        walk.kept(images),
        walk.problem.scale.detach().float(),
        score,
        walk.slope,
        height,
        width,
        strip,
        width,
        block.sentences.shape[1],
        **walk.options(),
    )
    return score


def _lines(shares: Shares) -> Tensor:
    """The lines that the gradient kernel reads, float32 [lines, anchors]."""
    return torch.stack([shares.peak, shares.softmax, shares.positive]).float()


class _Gradients:
    """Gradients of one rank, while blocks of sentences go by."""

    def __init__(self, walk: _Walk, lines: tuple[Tensor, Tensor], factor: Tensor, needs: tuple[bool, ...]) -> None:
        """`factor` turns the sums of chunks into gradients of patches and sentences."""
        problem = walk.problem
        self._walk, self._problem, self._factor = walk, problem, factor
        self._row_lines, self._column_lines = lines
        self._dtype = problem.patches.dtype
        self._gain = similarity_gain(self._dtype)
        # Rows of a chunk begin on addresses that tile copies can reach.
        self._pitch = problem.patches.shape[1] + -problem.patches.shape[1] % (ALIGNMENT // self._dtype.itemsize)
        # With one block an image is through at once; with more its sums stay in float32.
        at_once = len(problem.columns.route.legs) == 1
        kind = self._dtype if at_once else torch.float32
        self._at_once = at_once
        self._by_patch = torch.zeros_like(problem.patches, dtype=kind) if needs[0] else None
        like = problem.scale.new_empty(0, problem.patches.shape[2])
        self._by_sentence = Sums(problem.columns, like, problem.sentences.dtype) if needs[1] else None
        self._memory = problem.patches.new_empty(0)
        self.by_scale = torch.zeros((), dtype=torch.float64, device=like.device)

    def run(self) -> None:
        for block in self._problem.blocks(self._by_sentence):
            shape = block.sentences.shape
            part = self._problem.scale.new_zeros(shape) if self._by_sentence is not None else None
            pair_bytes = self._pitch * self._dtype.itemsize
            images, columns = gradient_chunks(self._problem.images.local, len(block.sentences), pair_bytes)
            for rows in images:
                self._add(rows, columns, block, part)
            if self._by_sentence is not None and part is not None:
                self._by_sentence.add(block.columns, part)

    def finished(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of patches and sentences in their own types; uses the sums up."""
        by_patch = self._by_patch
        if by_patch is not None and not self._at_once:
            by_patch = by_patch.mul_(self._factor).to(self._dtype)
        if self._by_sentence is None:
            return by_patch, None
        return by_patch, self._by_sentence.own().mul_(self._factor).to(self._problem.sentences.dtype)

    def _add(self, images: slice, columns: list[slice], block: Block, by_sentence: Tensor | None) -> None:
        """Carries the gradients of some images with all sentences of `block` into both sides."""
        problem = self._problem
        patches = problem.patches[images]
        marks = packed(self._walk.positives.targets(problem, images, block))
        vectors = pad(patches, (0, 0, 0, self._pitch - patches.shape[1])).flatten(0, 1)
        by_patch: Tensor | None = None
        for part in columns:
            sentences = block.sentences[part]
            gradient = self._chunk(
                patches, images, sentences, slice(block.columns.start + part.start, None), marks[:, part]
            )
            if by_sentence is not None:
                add_product_(by_sentence[part], gradient, vectors, stored_times=self._gain)
            if self._by_patch is None:
                continue
            if by_patch is None:
                by_patch = product(gradient.T, sentences)
                by_patch = by_patch.div_(self._gain) if self._gain != 1.0 else by_patch
            else:
                add_product_(by_patch, gradient.T, sentences, stored_times=self._gain)
        if self._by_patch is not None and by_patch is not None:
            found = by_patch.view(len(patches), self._pitch, -1)[:, : patches.shape[1]]
            if self._at_once:
                self._by_patch[images] = found.mul_(self._factor).to(self._dtype)
            else:
                self._by_patch[images] += found

    def _chunk(self, patches: Tensor, images: slice, sentences: Tensor, columns: slice, marks: Tensor) -> Tensor:
        """`gain` times the gradients in the similarities over scale, [sentences, images * pitch]."""
        walk, height, width = self._walk, len(patches), len(sentences)
        shape = walk.shape
        number, strip = image_strips(height, width, shape)
        tiles = ceil_div(width, shape.sentences)
        memory = self._room(width * height * self._pitch).view(width, height, self._pitch)
        row_lines = self._row_lines[:, images].contiguous()
        column_lines = self._column_lines[:, columns][:, :width].contiguous()
        by_scale = row_lines.new_zeros(tiles * number)
        launch(
            carry_kernel,
            (tiles, number),
            walk.sentence_tiles(sentences),
            *walk.patch_tiles(patches),
            *[
                TensorDescriptor.from_tensor(memory, [shape.sentences, 1, size]) if size > 1 else None
                for size in shape.pieces
            ],
            walk.kept(images),
            marks.contiguous(),
            row_lines,
            column_lines,
            by_scale,
            self._problem.scale.detach().float(),
            walk.slope,
            walk.problem.sharpness,
            self._gain,
            height,
            width,
            strip,
            height,
            width,
            sentences.shape[1],
            **walk.options(),
        )
        self.by_scale += by_scale.double().sum()
        return memory.flatten(1)

    def _room(self, numbers: int) -> Tensor:
        """Memory of the chunk; each use overwrites the last."""
        if self._memory.numel() < numbers:
            self._memory = self._memory.new_empty(numbers)
        return self._memory[:numbers]
