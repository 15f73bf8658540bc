r"""Computes the local loss by fused Triton kernels, without storing the matrix of patches by sentences.

1. *Pooling* (`kernels/pooling.py`): the similarities of a sentence with all patches of an image stay in registers, are
   weighted, and give one score. Only the scores of some images with a block of sentences are written to memory.
2. *Sums*: the losses need sums over the scores and their positives, in both directions. These sums are cheap in
   comparison with the scores, each of which costs hundreds of products. Therefore they are computed by the same plain
   tensor operations that `chunked` uses.
3. *Gradient*: similarities are computed again in registers. The gradient of a score follows from the statistics of its
   two anchors (image and sentence), and from a byte that says for each of them whether the pair is a positive or is
   excluded. The gradients of the similarities are written to a chunk \(H\) of bounded size. With the sentences \(U\),
   two matrix products of torch propagate \(H\):
   \(\partial L/\partial\,\mathrm{patches} \mathrel{+}= H^\top U\) and
   \(\partial L/\partial U \mathrel{+}= H\,\mathrm{patches}\).

For b images of P patches and N sentences of width D, forward and backward together take `8 * b * P * N * D`
floating-point operations. This is the smallest possible number if no similarity is stored. If an image has more patches
than registers hold, backward computes the similarities twice, and the number is `10 * b * P * N * D`. Decision 12 says
why a tile holds all patches of one image.
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
from emocap_kernels.distributed.columns import ColumnReduceScatter
from emocap_kernels.fused.launch import ALIGNMENT_BYTES, aligned, launch, tile_descriptor
from emocap_kernels.matmul import addmm_, matmul, similarity_storage_scale
from emocap_kernels.precision import full_precision
from emocap_kernels.region.batch import RegionBatch, SentenceBlock
from emocap_kernels.region.fused.kernels.pooling import LOG2_E, pool_backward_kernel, pool_kernel
from emocap_kernels.region.fused.positives import KernelComparison, mask_bytes
from emocap_kernels.region.fused.tiling import (
    RegionTileConfig,
    gradient_chunks,
    image_strips,
    region_tile_config,
    score_chunks,
)
from emocap_kernels.region.means import AnchorWeights, loss_means
from emocap_kernels.region.positives import RegionPositives
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import GradientWeights, RunningScoreStats
from emocap_kernels.transforms import once_differentiable


@dataclass(frozen=True, slots=True)
class _KernelPlan:
    """Holds the batch of one rank, and the settings with which kernels compute it."""

    batch: RegionBatch
    positives: RegionPositives
    tile: RegionTileConfig
    weights: AnchorWeights

    @property
    def slope(self) -> float:
        """Returns the sharpness times log2(e), because kernels compute exponentials in base 2."""
        return self.batch.sharpness * LOG2_E.value

    def patch_descriptors(self, patches: Tensor) -> list[TensorDescriptor | None]:
        """Returns three descriptors, by which kernels load the patches of a tile in up to three pieces.

        For a piece that does not exist, the entry is None. `patches` are those of some images, [images, patches,
        width].
        """
        flat = aligned(patches.flatten(0, 1))
        return [tile_descriptor(flat, size, self.tile.depth) if size > 1 else None for size in self.tile.pieces]

    def sentence_descriptor(self, sentences: Tensor) -> TensorDescriptor:
        return tile_descriptor(aligned(sentences), self.tile.sentences, self.tile.depth)

    def options(self) -> dict[str, int | str | bool]:
        """Returns the options that both `pool_kernel` and `pool_backward_kernel` get."""
        return {
            "nP": self.batch.patches.shape[1],
            "MASKED": self.batch.patch_mask is not None,
            **self.tile.options(),
        }

    def kept(self, images: slice) -> Tensor | None:
        """Returns the patch mask of the local `images` as uint8, or None if all patches are kept."""
        kept = self.batch.kept(images)
        # Kernels read the mask by pointers, row by row. A mask with other strides was once read in the wrong order.
        return None if kept is None else kept.to(torch.uint8).contiguous()


def evaluate(batch: RegionBatch) -> LossResult:
    """Returns the loss of the global batch, of which this rank may hold any number of images.

    This is a collective: all ranks must call it.

    Args:
        batch: The batch, with vectors in float32 or a half precision.
    """
    # Triton starts kernels on the current device, which need not be that of the inputs.
    with torch.cuda.device_of(batch.patches):
        with torch.no_grad():
            _, patches, _ = batch.patches.shape
            tile = region_tile_config(patches, batch.patches.dtype, batch.patches.device)
            positives = RegionPositives.of(batch, KernelComparison.of(batch))
            plan = _KernelPlan(batch, positives, tile, AnchorWeights.of(batch))
        loss, means = _RegionNCE.apply(batch.patches, batch.sentences, batch.scale, plan)  # pyright: ignore[reportGeneralTypeIssues]
        return LossResult.from_means(loss, means)


class _RegionNCE(Function):
    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, plan: _KernelPlan
    ) -> tuple[Tensor, Tensor]:
        # These are the tensors that autograd differentiates. The batch holds them too.
        del patches, sentences
        batch = plan.batch
        stats = _running_stats(plan).reduce(batch.ranks)
        weights = [_weight_fields(each) for each in plan.weights.gradient_weights(stats)]
        packed, vectors = batch.pack()
        ctx.plan = replace(plan, batch=packed)
        ctx.save_for_backward(scale, *weights, batch.owner, batch.patch_mask, *vectors)
        means = loss_means(batch, stats, plan.weights).to(scale.dtype)
        ctx.mark_non_differentiable(means)
        return (means[0] + means[1]) / 2, means

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        scale, row_weights, column_weights, _, _, *vectors = ctx.saved_tensors
        batch: RegionBatch = ctx.plan.batch.unpack(vectors)
        plan = replace(ctx.plan, batch=batch)
        factor = plan.weights.gradient_factor(grad_outputs[0], batch.ranks)
        with full_precision(scale.device), torch.cuda.device_of(scale):
            sums = _GradientSums(plan, (row_weights, column_weights), factor * scale, ctx.needs_input_grad)
            sums.run()
            by_patch, by_sentence = sums.finished()
        return by_patch, by_sentence, sums.by_scale.to(scale.dtype) * factor, None


def _running_stats(plan: _KernelPlan) -> RunningScoreStats:
    """Computes all scores of this rank once, and returns the statistics of the local images and of all sentences.

    This is a collective: all ranks must call it. The statistics are not reduced over ranks yet.
    """
    batch = plan.batch
    running = RunningScoreStats(batch.image_partition, batch.sentence_partition, like=batch.scale)
    for block in batch.blocks():
        for images in score_chunks(batch.image_partition.local, len(block.sentences)):
            score = _scores(plan, images, block)
            running.add(score, plan.positives.targets(batch, images, block), images, block.columns)
    return running


def _scores(plan: _KernelPlan, images: slice, block: SentenceBlock) -> Tensor:
    """Returns the scores of the local `images` with the sentences of `block`, float32 [images, sentences]."""
    height, width = images.stop - images.start, len(block.sentences)
    score = block.sentences.new_empty(height, width, dtype=torch.float32)
    number, strip = image_strips(height, width, plan.tile)
    launch(
        pool_kernel,
        (ceil_div(width, plan.tile.sentences), number),
        plan.sentence_descriptor(block.sentences),
        *plan.patch_descriptors(plan.batch.patches[images]),
        plan.kept(images),
        plan.batch.scale.detach().float(),
        score,
        plan.slope,
        height,
        width,
        strip,
        width,
        block.sentences.shape[1],
        **plan.options(),
    )
    return score


def _weight_fields(weights: GradientWeights) -> Tensor:
    """Returns the fields of `weights` in the layout that the gradient kernel reads, float32 [fields, anchors]."""
    return torch.stack([weights.peak, weights.softmax, weights.positive]).float()


class _GradientSums:
    """Adds up the gradients of patches, sentences and scale on one rank, over blocks of sentences."""

    def __init__(
        self, plan: _KernelPlan, weights: tuple[Tensor, Tensor], factor: Tensor, needs: tuple[bool, ...]
    ) -> None:
        """Starts with sums of zero.

        Args:
            plan: The plan that forward used.
            weights: Gradient weights of the local images and of all sentences, [fields, anchors] each.
            factor: The factor by which the sums for patches and sentences must be multiplied to get their gradients.
            needs: Whether patches and sentences need a gradient, in this order. Further values are not read.
        """
        batch = plan.batch
        self._plan, self._batch, self._factor = plan, batch, factor
        self._row_weights, self._column_weights = weights
        self._dtype = batch.patches.dtype
        self._stored_scale = similarity_storage_scale(self._dtype)
        # The row of an image in a chunk must begin at an aligned address, so that the kernel can store tiles there.
        patches = batch.patches.shape[1]
        self._pitch = patches + -patches % (ALIGNMENT_BYTES // self._dtype.itemsize)
        # With one block, the gradient of an image is complete at once, and is stored in the type of the patches. With
        # several, its sums stay in float32.
        self._one_block = len(batch.columns.plan.stages) == 1
        kind = self._dtype if self._one_block else torch.float32
        self._by_patch = torch.zeros_like(batch.patches, dtype=kind) if needs[0] else None
        like = batch.scale.new_empty(0, batch.patches.shape[2])
        self._by_sentence = ColumnReduceScatter(batch.columns, like, batch.sentences.dtype) if needs[1] else None
        self._memory = batch.patches.new_empty(0)
        self.by_scale = torch.zeros((), dtype=torch.float64, device=like.device)

    def run(self) -> None:
        """Computes all chunks of gradients and adds them up. This is a collective: all ranks must call it."""
        for block in self._batch.blocks(self._by_sentence):
            shape = block.sentences.shape
            part = self._batch.scale.new_zeros(shape) if self._by_sentence is not None else None
            pair_bytes = self._pitch * self._dtype.itemsize
            images, columns = gradient_chunks(self._batch.image_partition.local, len(block.sentences), pair_bytes)
            for rows in images:
                self._add(rows, columns, block, part)
            if self._by_sentence is not None and part is not None:
                self._by_sentence.add(block.columns, part)

    def finished(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns the gradients of patches and sentences in their own types. The sums are overwritten.

        This is a collective: all ranks must call it.
        """
        by_patch = self._by_patch
        if by_patch is not None and not self._one_block:
            by_patch = by_patch.mul_(self._factor).to(self._dtype)
        if self._by_sentence is None:
            return by_patch, None
        return by_patch, self._by_sentence.result().mul_(self._factor).to(self._batch.sentences.dtype)

    def _add(self, images: slice, columns: list[slice], block: SentenceBlock, by_sentence: Tensor | None) -> None:
        """Adds the gradients that follow from the scores of the local `images` with all sentences of `block`.

        `columns` are slices of the sentences, one for each chunk. The gradients of the sentences are added to
        `by_sentence`, unless it is None.
        """
        batch = self._batch
        patches = batch.patches[images]
        mask = mask_bytes(self._plan.positives.targets(batch, images, block))
        # A chunk has `pitch` columns for each image, so the patches get rows of zeros to match. The kernel writes zeros
        # to the additional columns, because its tiles cover the whole pitch.
        vectors = pad(patches, (0, 0, 0, self._pitch - patches.shape[1])).flatten(0, 1)
        by_patch: Tensor | None = None
        for part in columns:
            sentences = block.sentences[part]
            first = slice(block.columns.start + part.start, None)
            gradient = self._chunk(patches, images, sentences, first, mask[:, part])
            if by_sentence is not None:
                addmm_(by_sentence[part], gradient, vectors, stored_scale=self._stored_scale)
            if self._by_patch is None:
                continue
            # The first product creates the sum in float32, and the others are added to it.
            if by_patch is None:
                by_patch = matmul(gradient.T, sentences)
                by_patch = by_patch.div_(self._stored_scale) if self._stored_scale != 1.0 else by_patch
            else:
                addmm_(by_patch, gradient.T, sentences, stored_scale=self._stored_scale)
        # All sentences of the block have been added, and the additional rows of each image are cut off.
        if self._by_patch is not None and by_patch is not None:
            found = by_patch.view(len(patches), self._pitch, -1)[:, : patches.shape[1]]
            if self._one_block:
                self._by_patch[images] = found.mul_(self._factor).to(self._dtype)
            else:
                self._by_patch[images] += found

    def _chunk(self, patches: Tensor, images: slice, sentences: Tensor, columns: slice, mask: Tensor) -> Tensor:
        """Returns the gradients of the similarities of one chunk, [sentences, images * pitch].

        The chunk consists of the local `images`, with the vectors `patches`, and of the vectors `sentences`, whose
        global indices begin at `columns.start`. `mask`, [images, sentences], has one byte for each pair of them
        (`mask_bytes`). `pitch` is the number of patches of an image, rounded up for alignment.

        The gradients are 2A times those of the loss, without the factor `scale`; A is the number of images that have a
        sentence. They are multiplied by `similarity_storage_scale`, so that float16 does not round small values to
        zero. The chunk's part of the gradient of the scale is added to the attribute `by_scale`. The next call
        overwrites the result.
        """
        plan, height, width = self._plan, len(patches), len(sentences)
        tile = plan.tile
        number, strip = image_strips(height, width, tile)
        tiles = ceil_div(width, tile.sentences)
        memory = self._reserve(width * height * self._pitch).view(width, height, self._pitch)
        row_weights = self._row_weights[:, images].contiguous()
        column_weights = self._column_weights[:, columns][:, :width].contiguous()
        # One number for each program. They are added in a fixed order afterwards, without atomics.
        by_scale = row_weights.new_zeros(tiles * number)
        launch(
            pool_backward_kernel,
            (tiles, number),
            plan.sentence_descriptor(sentences),
            *plan.patch_descriptors(patches),
            *[
                TensorDescriptor.from_tensor(memory, [tile.sentences, 1, size]) if size > 1 else None
                for size in tile.pieces
            ],
            plan.kept(images),
            mask.contiguous(),
            row_weights,
            column_weights,
            by_scale,
            self._batch.scale.detach().float(),
            plan.slope,
            plan.batch.sharpness,
            self._stored_scale,
            height,
            width,
            strip,
            height,
            width,
            sentences.shape[1],
            **plan.options(),
        )
        self.by_scale += by_scale.double().sum()
        return memory.flatten(1)

    def _reserve(self, numbers: int) -> Tensor:
        """Returns uninitialised memory for a chunk of `numbers` elements. All chunks use the same memory."""
        if self._memory.numel() < numbers:
            self._memory = self._memory.new_empty(numbers)
        return self._memory[:numbers]
