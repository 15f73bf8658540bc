"""Adds up the losses, counts and input gradients of one rank during a pass over the scores.

`chunked`, `pairwise` and the fused backend share these sums. A pass is a loop over `GradientSums.blocks`, in which a
backend computes gradients of tiles of scores and adds each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import even_blocks
from emocap_kernels.contrastive.batch import ContrastiveBatch, TextBlock
from emocap_kernels.distributed.columns import ColumnReduceScatter
from emocap_kernels.distributed.ranks import Partition, Ranks
from emocap_kernels.distributed.reductions import sum_over_ranks
from emocap_kernels.matmul import HALF_DTYPES, addmm_, matmul

# Number of images whose products with their gradients are in memory at once.
PRODUCT_ROWS = 4096


@dataclass(frozen=True, slots=True)
class LossSums:
    """Holds this rank's part of sums over the anchors of each direction, 0-dim each.

    The parts of all ranks add up to the sums over all anchors of the global batch.

    Attributes:
        image_loss: Losses of the image anchors.
        text_loss: Losses of the text anchors.
        image_positives: Numbers of positives of the image anchors.
        text_positives: Numbers of positives of the text anchors.
        image_hits: Number of image anchors whose best candidate is their own pair or has an equal id.
        text_hits: Number of text anchors whose best candidate is their own pair or has an equal id.
    """

    image_loss: Tensor
    text_loss: Tensor
    image_positives: Tensor
    text_positives: Tensor
    image_hits: Tensor
    text_hits: Tensor

    def means(self, partition: Partition, ranks: Ranks) -> Tensor:
        """Returns the means over the global batch, float64 [5], in the order that `LossResult.from_means` expects.

        This is a collective: all ranks must call it.
        """
        # One exchange for all five numbers. Dividing by the total gives the mean, because all anchors weigh equally.
        sums = [
            self.image_loss,
            self.text_loss,
            (self.image_positives.double() + self.text_positives.double()) / 2,
            self.image_hits,
            self.text_hits,
        ]
        return sum_over_ranks(torch.stack([each.double() for each in sums]), ranks) / partition.total


def count_hits(best: Tensor, partition: Partition, ids: Tensor | None) -> Tensor:
    """Returns the number of local anchors whose best candidate is their own pair or has an equal id, 0-dim float64.

    Args:
        best: int64 [local], global index of the best-scoring candidate of each local anchor.
        partition: The division of the rows among the ranks.
        ids: int64 [total] or None.
    """
    own = partition.indices(best.device)
    # Scores that are NaN have no best candidate, and their index may lie beyond the end.
    found = best == own if ids is None else ids[best.clamp(max=len(ids) - 1)] == ids[own]
    return found.double().sum()


class GradientSums:
    """Adds up the gradients of the inputs over tiles of scores, for every backend that computes scores in tiles.

    The sums are gradients of 2B times this rank's part of the loss, where B is the number of rows of the global batch.
    The gradients of image and text lack the factor `scale`. The caller multiplies by it, for instance in `finished`.
    Without these factors, our objectives have gradients of scores in [-2, 2] for every batch and scale, which half
    precision can store (decision 10).

    Attributes:
        image: [local, width], in at least float32, or None if the images need no gradient.
        scale: 0-dim float64. Kernels add to it directly.
        bias: 0-dim float64. Kernels add to it directly.
    """

    def __init__(self, batch: ContrastiveBatch, needs: Sequence[bool]) -> None:
        """Starts with sums of zero.

        Args:
            batch: The batch.
            needs: Whether image, text, scale and bias need a gradient. For the text, the need of any rank counts.
        """
        self._batch, self._image = batch, batch.image
        needs_image, needs_text, self.needs_scale, self.needs_bias = needs
        wide = batch.scale.dtype
        self.image = torch.zeros_like(self._image, dtype=wide) if needs_image else None
        self.scale = torch.zeros((), dtype=torch.float64, device=self._image.device)
        self.bias = torch.zeros((), dtype=torch.float64, device=self._image.device)
        self._texts = ColumnReduceScatter(
            batch.columns, self._image.new_empty(0, self._image.shape[1], dtype=wide), batch.text.dtype
        )
        self._needs_text = needs_text
        self._block: TextBlock | None = None
        self._part: Tensor | None = None

    def blocks(self) -> Iterator[TextBlock]:
        """Yields the blocks of the batch. The caller adds the gradients of a block before it requests the next one.

        This is a collective: all ranks must call it.
        """
        for block in self._batch.blocks(self._texts if self._needs_text else None):
            # Each block gets new memory: `add` of the reduce-scatter keeps it while it is sent.
            self._block = block
            self._part = torch.zeros_like(block.text, dtype=self._batch.scale.dtype) if self._needs_text else None
            yield block
            if self._part is not None:
                self._texts.add(block.columns, self._part)

    def add(self, gradient: Tensor, rows: slice, columns: slice) -> None:
        """Adds what the gradient of some scores contributes to the gradients of the images and of the texts.

        Args:
            gradient: [rows, columns], the gradient of the scores, in a type that `matmul.addmm_` accepts.
            rows: Local images.
            columns: Texts of the current block, counted from its first text.
        """
        assert self._block is not None
        if self.image is not None:
            addmm_(self.image[rows], gradient, self._block.text[columns])
        if self._part is not None:
            addmm_(self._part[columns], gradient.T, self._image[rows])

    def add_scale_and_bias(self, gradient: Tensor, rows: slice) -> None:
        """Adds the parts of the gradients of scale and bias that follow from a gradient of scores.

        `gradient` belongs to the scores of the local images `rows` with all texts of the current block.
        """
        if self.needs_bias:
            self.bias += gradient.sum()
        if self.needs_scale and not self._scale_from_image():
            assert self._block is not None
            # The caller has overwritten the cosines, so they are computed again.
            cosine = matmul(self._image[rows], self._block.text.T)
            self.scale += cosine.mul_(gradient).sum(1).double().sum()

    def finish_scale(self) -> None:
        """Computes the gradient of the scale from that of the images, unless this would be inaccurate.

        It is inaccurate with half-precision vectors, and impossible if the images need no gradient. In these cases
        `add_scale_and_bias` has already summed the gradient of the scale, which this method then leaves as it is. It
        must be called after the last block. Kernels sum the gradient of the scale themselves, and do not need it.
        """
        # The sum of G_ij <x_i, y_j> over all pairs is the sum over i of <x_i, sum over j of G_ij y_j>. The inner sum is
        # the gradient of image i without the factor `scale`.
        if self.image is not None and self.needs_scale and self._scale_from_image():
            for rows in even_blocks(len(self._image), PRODUCT_ROWS):
                self.scale += (self.image[rows] * self._image[rows]).sum(1).double().sum()

    def text(self) -> Tensor | None:
        """Returns the gradient of the texts of this rank, summed over ranks. It must be called after the last block.

        This is a collective: all ranks must call it.
        """
        return self._texts.result() if self._needs_text else None

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns `factor` times the gradients of image and text, in their own types. The sums are overwritten.

        This is a collective: all ranks must call it.
        """
        text = self.text()
        image = None if self.image is None else self.image.mul_(factor).to(self._image.dtype)
        return image, None if text is None else text.mul_(factor).to(self._batch.text.dtype)

    def _scale_from_image(self) -> bool:
        """Returns whether the gradient of the scale can be computed from that of the images.

        This is not accurate with half-precision vectors: their rounding removes terms that nearly cancel in the sum.
        """
        return self.image is not None and self._image.dtype not in HALF_DTYPES
