"""Computes the local loss in bounded memory, in plain torch. Each tile is computed twice and never stored.

A tile contains the similarities of some sentences with the patches of some images. Forward keeps a few statistics of
each anchor. Backward computes the similarities and scores of each tile again, in tiles of the same shapes. It gets the
gradient of the scores from the statistics, and propagates this gradient through the pooling to patches and sentences.

Similarities, [sentences, images, patches], exist for one tile at a time. Scores, [images, sentences], are smaller, so
forward holds the scores of some images with a whole block of sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.distributed.columns import ColumnReduceScatter
from emocap_kernels.matmul import addmm_, matmul, similarity_storage_scale
from emocap_kernels.mining import Mining, first_duplicates
from emocap_kernels.positives import mine_top_k
from emocap_kernels.precision import full_precision
from emocap_kernels.region.batch import RegionBatch, SentenceBlock
from emocap_kernels.region.means import AnchorWeights, loss_means
from emocap_kernels.region.pooling import pooling_weights
from emocap_kernels.region.positives import OwnSentences, RegionPositives
from emocap_kernels.result import LossResult
from emocap_kernels.softmax import GradientWeights, RunningScoreStats, score_gradient
from emocap_kernels.transforms import once_differentiable

# Number of sentences of a tile, enough for a fast matrix product. If there are few images, a tile has more sentences.
TILE_SENTENCES = 1024


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Holds the sizes of one rank's tiles, and the values that the computation of every tile needs.

    Attributes:
        batch: The batch.
        positives: Determines the positives of a tile.
        images: Slices of the local images. A tile contains the images of one slice.
        longest: Largest number of sentences of a tile.
        weights: The weights of the anchors in the means of the loss.
    """

    batch: RegionBatch
    positives: RegionPositives
    images: list[slice]
    longest: int
    weights: AnchorWeights

    @staticmethod
    def of(batch: RegionBatch, block_bytes: int) -> _Tiling:
        """Cuts the similarities into tiles of at most `block_bytes`, and mines lists of sentences.

        The lists are mined only if the mining rule has `top_k`.

        This is a collective, because the lists are gathered: all ranks must call it.
        """
        # Two limits: similarities of some images with up to TILE_SENTENCES sentences, and scores of the same images
        # with all sentences, must each fit into the budget.
        numbers = max(1, block_bytes // batch.scale.element_size())
        patches, total = batch.patches.shape[1], batch.sentence_partition.total
        together = min(numbers // (patches * min(total, TILE_SENTENCES)), numbers // total)
        images = even_blocks(batch.image_partition.local, together)
        tallest = max((block.stop - block.start for block in images), default=1)
        # The comparison of own sentences with all sentences has the same budget.
        positives = RegionPositives.of(batch, _MatmulComparison.of(batch, longest=max(1, numbers // total)))
        return _Tiling(batch, positives, images, numbers // (patches * tallest), AnchorWeights.of(batch))

    def tiles(self, block: SentenceBlock) -> list[slice]:
        """Returns slices of the sentences of `block`, one for each tile."""
        return even_blocks(len(block.sentences), self.longest)

    def similarity(self, images: slice, sentences: Tensor) -> Tensor:
        """Returns the cosines of some sentences with the patches of some images, [sentences, images, patches].

        With this order of the axes, the softmax over patches reads contiguous memory.
        """
        patches = self.batch.patches[images]
        return matmul(sentences, patches.flatten(0, 1).T).view(len(sentences), *patches.shape[:2])

    def attention(self, similarity: Tensor, images: slice) -> Tensor:
        """Returns the weights by which each sentence pools the patches of each image, [sentences, images, patches]."""
        return pooling_weights(similarity, self.batch.sharpness, self.batch.kept(images))


def evaluate(batch: RegionBatch, *, block_bytes: int | None = None) -> LossResult:
    """Returns the loss of the global batch, of which this rank may hold any number of images.

    This is a collective: all ranks must call it.

    Args:
        batch: The batch, with vectors of any type. On a GPU, half-precision vectors are multiplied in their own type.
        block_bytes: Largest number of bytes of one tile of similarities; None means the default of the device.
    """
    with torch.no_grad():
        tiling = _Tiling.of(batch, block_bytes_on(batch.patches.device) if block_bytes is None else block_bytes)
    loss, means = _RegionNCE.apply(batch.patches, batch.sentences, batch.scale, tiling)  # pyright: ignore[reportGeneralTypeIssues]
    return LossResult.from_means(loss, means)


@dataclass(frozen=True, slots=True)
class _MatmulComparison:
    """Compares sentences for mining (`SentenceComparison`) by matrix products of torch.

    Attributes:
        own: The sentences of this rank in an order in which those of each image are consecutive.
        starts: The values of `own.starts`, copied to the host.
        longest: Largest number of sentences that are compared with all others at once.
    """

    own: OwnSentences
    starts: tuple[int, ...]
    longest: int

    @staticmethod
    def of(batch: RegionBatch, *, longest: int) -> _MatmulComparison:
        own = OwnSentences.of(batch)
        return _MatmulComparison(own, tuple(own.starts.tolist()), longest)

    def any_similar(self, batch: RegionBatch, images: slice, block: SentenceBlock, threshold: float) -> Tensor:
        number, width = images.stop - images.start, len(block.sentences)
        hits = torch.zeros(number, width, dtype=torch.int32, device=block.sentences.device)
        mine = slice(self.starts[images.start], self.starts[images.stop])
        # In the order by image, the own sentences of consecutive images are a slice.
        sentences = batch.sentences.detach()[self.own.order[mine]].to(block.sentences.dtype)
        rows = self.own.images[mine] - images.start
        for part in even_blocks(len(rows), self.longest):
            close = matmul(sentences[part], block.sentences.T) >= threshold
            hits.index_add_(0, rows[part], close.int())
        return hits > 0

    def nearest(self, batch: RegionBatch, mining: Mining) -> Tensor:
        # All sentences are needed at once, because the first of equal candidates may be anywhere.
        sentences = batch.all_sentences()
        duplicates = first_duplicates(sentences)
        own = batch.sentence_partition.indices(sentences.device)

        def similarity(block: slice) -> Tensor:
            found = matmul(sentences[own[block]], sentences.T)
            return found if duplicates is None else found[:, duplicates]

        blocks = even_blocks(batch.sentence_partition.local, self.longest)
        return mine_top_k(similarity, own, blocks, mining, candidates=batch.sentence_partition.total)


class _RegionNCE(Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, tiling: _Tiling) -> tuple[Tensor, Tensor]:
        # These are the tensors that autograd differentiates. The batch holds them too.
        del patches, sentences
        batch = tiling.batch
        stats = _running_stats(tiling).reduce(batch.ranks)
        packed, vectors = batch.pack()
        ctx.tiling = replace(tiling, batch=packed)
        ctx.rows, ctx.columns = tiling.weights.gradient_weights(stats)
        # `owner` and `patch_mask` are saved only so that autograd raises an error if they were changed: the packed
        # batch holds them as well.
        ctx.save_for_backward(scale, batch.owner, batch.patch_mask, *vectors)
        means = loss_means(batch, stats, tiling.weights).to(scale.dtype)
        ctx.mark_non_differentiable(means)
        return (means[0] + means[1]) / 2, means

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        scale, _, _, *vectors = ctx.saved_tensors
        batch: RegionBatch = ctx.tiling.batch.unpack(vectors)
        with full_precision(scale.device):
            sums = _GradientSums(replace(ctx.tiling, batch=batch), ctx.rows, ctx.columns, ctx.needs_input_grad)
            sums.run()
        factor = ctx.tiling.weights.gradient_factor(grad_outputs[0], batch.ranks)
        return *sums.finished(factor * scale), sums.by_scale.to(scale.dtype) * factor, None


def _running_stats(tiling: _Tiling) -> RunningScoreStats:
    """Computes all tiles of this rank once, and returns the statistics of the local images and of all sentences.

    This is a collective: all ranks must call it. The statistics are not reduced over ranks yet.
    """
    batch = tiling.batch
    running = RunningScoreStats(batch.image_partition, batch.sentence_partition, like=batch.scale)
    for block in batch.blocks():
        for images in tiling.images:
            score = batch.scale.new_empty(images.stop - images.start, len(block.sentences))
            for part in tiling.tiles(block):
                similarity = tiling.similarity(images, block.sentences[part])
                score[:, part] = tiling.attention(similarity, images).mul_(similarity).sum(-1).T
            score *= batch.scale
            # The statistics take all sentences of the block at once, so the targets are computed once for all tiles.
            running.add(score, tiling.positives.targets(batch, images, block), images, block.columns)
    return running


class _GradientSums:
    """Adds up the gradients of patches, sentences and scale over tiles.

    The sums are this rank's part of 2A times the gradients of the loss, where A is the number of images that have a
    sentence. The gradients of patches and sentences lack the factor `scale` of the scores. The caller corrects both by
    the argument of `finished`.
    """

    def __init__(
        self, tiling: _Tiling, rows: GradientWeights, columns: GradientWeights, needs: tuple[bool, ...]
    ) -> None:
        self._tiling, self._rows, self._columns = tiling, rows, columns
        batch, wide = tiling.batch, tiling.batch.scale.dtype
        like = batch.patches.new_empty(0, batch.patches.shape[2], dtype=wide)
        self.by_patch = torch.zeros_like(batch.patches, dtype=wide) if needs[0] else None
        self.by_sentence = ColumnReduceScatter(batch.columns, like, batch.sentences.dtype) if needs[1] else None
        self._stored_scale = similarity_storage_scale(batch.patches.dtype)
        self.by_scale = torch.zeros((), dtype=torch.float64, device=like.device)

    def run(self) -> None:
        """Computes all tiles again and adds their gradients. This is a collective: all ranks must call it."""
        for block in self._tiling.batch.blocks(self.by_sentence):
            wide = self._tiling.batch.scale.dtype
            part = torch.zeros_like(block.sentences, dtype=wide) if self.by_sentence is not None else None
            for images in self._tiling.images:
                self._add(images, block, part)
            if self.by_sentence is not None and part is not None:
                self.by_sentence.add(block.columns, part)

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns `factor` times the gradients of patches and sentences, in their own types. The sums are overwritten.

        This is a collective: all ranks must call it.
        """
        batch = self._tiling.batch
        by_sentence = None if self.by_sentence is None else self.by_sentence.result()
        return (
            None if self.by_patch is None else self.by_patch.mul_(factor).to(batch.patches.dtype),
            None if by_sentence is None else by_sentence.mul_(factor).to(batch.sentences.dtype),
        )

    def _add(self, images: slice, block: SentenceBlock, by_sentence: Tensor | None) -> None:
        batch = self._tiling.batch
        targets = self._tiling.positives.targets(batch, images, block)
        rows, columns = self._rows.part(images), self._columns.part(block.columns)
        for part in self._tiling.tiles(block):
            similarity = self._tiling.similarity(images, block.sentences[part])
            attention = self._tiling.attention(similarity, images)
            pooled = (attention * similarity).sum(-1)
            score = pooled.T * batch.scale
            gradient = score_gradient(score, targets.columns(part), rows, columns.part(part)).T
            self.by_scale += (gradient * pooled).sum()
            # d pooled / d similarity = attention * (1 + sharpness * (similarity - pooled)), computed in place.
            similarity.sub_(pooled[:, :, None]).mul_(attention)
            attention.add_(similarity, alpha=batch.sharpness).mul_(gradient[:, :, None])
            by_similarity = attention.flatten(1)
            if self.by_patch is not None:
                by_patch = self.by_patch[images].flatten(0, 1)
                addmm_(by_patch, by_similarity.T, block.sentences[part], stored_scale=self._stored_scale)
            if by_sentence is not None:
                vectors = batch.patches[images].flatten(0, 1)
                addmm_(by_sentence[part], by_similarity, vectors, stored_scale=self._stored_scale)
