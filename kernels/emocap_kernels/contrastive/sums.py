"""Adds up the losses, the numbers of positives and hits, and the gradients of the inputs, on one rank.

`chunked`, `pairwise` and the fused backend share these sums. Gradients are added up in a loop over
`GradientSums.blocks`. In it, a backend computes the gradient of each tile of scores and passes it to
`GradientSums.add`.
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
        image_loss: Sum of the losses of the image anchors.
        text_loss: Sum of the losses of the text anchors.
        image_positives: Sum of the numbers of positives of the image anchors.
        text_positives: Sum of the numbers of positives of the text anchors.
        image_hits: Number of image anchors whose best candidate belongs to the same sample or to one of equal id.
        text_hits: Number of text anchors whose best candidate belongs to the same sample or to one of equal id.
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
    """Returns the number of local anchors whose best candidate is correct, 0-dim float64.

    A candidate is correct if it belongs to the same sample as the anchor, or to a sample of equal id.

    Args:
        best: int64 [local], global index of the best-scoring candidate of each local anchor.
        partition: The division of the rows among the ranks.
        ids: int64 [total], the ids of all samples of the batch; None if the loss was called without ids.
    """
    own = partition.indices(best.device)
    # Scores that are NaN have no best candidate, and their index may lie beyond the end.
    found = best == own if ids is None else ids[best.clamp(max=len(ids) - 1)] == ids[own]
    return found.double().sum()


class GradientSums:
    """Adds up the gradients of the inputs over tiles of scores, for every backend that computes scores in tiles.

    The sums are the gradients of 2B times this rank's part of the loss, where B is the number of rows of the global
    batch. The sums for image and text also lack the factor `scale` of the scores. Therefore the caller must divide all
    sums by 2B, and multiply those for image and text by `scale`. For image and text, the caller may pass the combined
    factor to `finished`, which applies it. The gradient of 2B times the loss with respect to a score lies in [-2, 2]
    for the objectives of this package, whatever the batch and the scale. Therefore it can be stored in half precision
    (decision 10).

    Attributes:
        image: [local, width], the sum for the images in at least float32, or None if they need no gradient.
        scale: 0-dim float64, the sum for the scale. The fused backend adds to it directly.
        bias: 0-dim float64, the sum for the bias. The fused backend adds to it directly.
    """

    def __init__(self, batch: ContrastiveBatch, needs: Sequence[bool]) -> None:
        """Starts with sums of zero.

        Args:
            batch: The batch.
            needs: Whether image, text, scale and bias need a gradient, in this order. If the texts of any rank need a
                gradient, the second value must be True on all ranks.
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
        """Yields the blocks of texts. The caller adds the gradients of a block before it requests the next one.

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
            rows: The local images of these scores.
            columns: The texts of these scores, as indices within the current block.
        """
        assert self._block is not None
        if self.image is not None:
            addmm_(self.image[rows], gradient, self._block.text[columns])
        if self._part is not None:
            addmm_(self._part[columns], gradient.T, self._image[rows])

    def add_scale_and_bias(self, gradient: Tensor, rows: slice) -> None:
        """Adds what the gradient of some scores contributes to the gradients of scale and bias.

        `gradient` belongs to the scores of the local images `rows` with all texts of the current block. Nothing is
        added for the scale if `finish_scale` computes its gradient later.
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

        This method must be called after the last block. It does nothing if the vectors have half precision (the result
        would be inaccurate) or if the images need no gradient. In these two cases `add_scale_and_bias` has already
        summed the gradient of the scale. To do so, it computes the cosines of each tile again, which is one more matrix
        product. The fused backend does not call this method, because its kernels sum the gradient of the scale.
        """
        # The sum of G_ij <x_i, y_j> over all pairs is the sum over i of <x_i, sum over j of G_ij y_j>. The inner sum is
        # the gradient of image i without the factor `scale`.
        if self.image is not None and self.needs_scale and self._scale_from_image():
            for rows in even_blocks(len(self._image), PRODUCT_ROWS):
                self.scale += (self.image[rows] * self._image[rows]).sum(1).double().sum()

    def text(self) -> Tensor | None:
        """Returns the gradient of this rank's texts, summed over all ranks, or None if the texts need no gradient.

        It must be called after the last block. This is a collective: all ranks must call it.
        """
        return self._texts.result() if self._needs_text else None

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns `factor` times the sums for image and text, in the types of these inputs. The sums are overwritten.

        This is a collective: all ranks must call it.
        """
        text = self.text()
        image = None if self.image is None else self.image.mul_(factor).to(self._image.dtype)
        return image, None if text is None else text.mul_(factor).to(self._batch.text.dtype)

    def _scale_from_image(self) -> bool:
        """Returns whether the gradient of the scale can be computed from that of the images.

        It cannot in two cases. If the images need no gradient, their gradient is not computed. If the vectors have half
        precision, the gradients of the scores are rounded to half precision as well. This is too inaccurate here,
        because the terms of the sum nearly cancel.
        """
        return self.image is not None and self._image.dtype not in HALF_DTYPES
