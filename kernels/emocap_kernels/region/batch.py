"""Describes the batch of the local loss on one rank: its own images, and the sentences of all ranks as they arrive.

Images and sentences have a partition each (the division among the ranks), because a rank may hold any number of either.
Scores are [images, sentences]: rows are the images of this rank, and columns are the sentences of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emocap_kernels.distributed.columns import ColumnAllGather, ColumnReduceScatter
from emocap_kernels.distributed.ranks import SINGLE_RANK, Partition, Ranks
from emocap_kernels.distributed.reductions import gather_replicated, gather_rows
from emocap_kernels.mining import Mining
from emocap_kernels.precision import compute_dtype, product_dtype, scale_tensor
from emocap_kernels.region.inputs import RegionInputs


@dataclass(frozen=True, slots=True)
class SentenceBlock:
    """Holds some sentences of the global batch.

    Attributes:
        columns: Global indices of the sentences.
        sentences: [sentences, width], in the type of the patches.
    """

    columns: slice
    sentences: Tensor


@dataclass(frozen=True, slots=True)
class RegionBatch:
    """Describes the global batch on a rank that holds some images and receives all sentences.

    Each loop over `blocks` is one pass over all sentences of the global batch. An autograd function saves what `pack`
    returns, and calls `unpack` in backward.

    Attributes:
        patches: [local images, patches, width]; zero where `patch_mask` is False.
        sentences: [local sentences, width], in the type in which they are sent.
        columns: The all-gather of the sentences.
        owner: int64 [total sentences], the global index of the image that each sentence belongs to.
        scale: 0-dim, in the type of the scores: at least float32.
        sharpness: Factor of the similarities in the softmax that weights the patches; with 0, patches are averaged.
        patch_mask: Bool [local images, patches], True for patches that are kept; None keeps all.
        mining: The rule for further positives; None if only the sentences of an image are its positives. The field
            `guide` of the rule is not read, because the local loss always compares sentences.
        image_partition: The division of the images among the ranks.
        sentence_partition: The division of the sentences among the ranks.
        ranks: The ranks of the batch.
    """

    patches: Tensor
    sentences: Tensor
    columns: ColumnAllGather
    owner: Tensor
    scale: Tensor
    sharpness: float
    patch_mask: Tensor | None
    mining: Mining | None
    image_partition: Partition
    sentence_partition: Partition
    ranks: Ranks

    def blocks(self, gradients: ColumnReduceScatter | None = None) -> Iterator[SentenceBlock]:
        """Yields all sentences in blocks. The sentences of this rank come first.

        This is a collective: all ranks must call it. `gradients` collects the gradients of the sentences, as in
        `ColumnAllGather.blocks`.
        """
        for block in self.columns.blocks(gradients):
            yield SentenceBlock(block.columns, block.vectors[0].to(self.patches.dtype))

    def pack(self) -> tuple[RegionBatch, tuple[Tensor, ...]]:
        """Returns a copy of this batch without its vectors, and the vectors, for `save_for_backward`."""
        columns, gathered = self.columns.pack()
        nothing = self.patches[:0].detach(), self.sentences[:0].detach()
        packed = replace(self, patches=nothing[0], sentences=nothing[1], columns=columns)
        return packed, (self.patches, self.sentences, *gathered)

    def unpack(self, tensors: Sequence[Tensor]) -> RegionBatch:
        """Returns a copy of this packed batch that holds `tensors`, the vectors that `pack` returned."""
        patches, sentences, *gathered = tensors
        return replace(self, patches=patches, sentences=sentences, columns=self.columns.unpack(gathered))

    def all_sentences(self) -> Tensor:
        """Returns the sentences of the whole batch, [total sentences, width].

        This is a collective: all ranks must call it.
        """
        return self.columns.gather_all()[0].to(self.patches.dtype)

    def is_anchor(self) -> Tensor:
        """Returns a mask of the images that have a sentence, bool [total images]. Only these images are anchors."""
        # `bincount` would make the host wait for the length of its result.
        return torch.zeros(self.image_partition.total, dtype=torch.bool, device=self.owner.device).index_fill_(
            0, self.owner, True
        )

    def kept(self, images: slice) -> Tensor | None:
        """Returns the patch mask of the local `images`, or None if all patches are kept."""
        return None if self.patch_mask is None else self.patch_mask[images]


def sharded_batch(
    inputs: RegionInputs,
    image_partition: Partition,
    sentence_partition: Partition,
    ranks: Ranks,
    *,
    backward_communicates: bool,
    narrow: bool,
) -> RegionBatch:
    """Returns the batch in which this rank scores its own images against all sentences. Patches are never sent.

    This is a collective, because the image index of every sentence is gathered: all ranks must call it.

    Args:
        inputs: The inputs of this rank.
        image_partition: The division of the images among the ranks.
        sentence_partition: The division of the sentences among the ranks.
        ranks: The ranks of the batch.
        backward_communicates: Whether any rank must send messages in backward: if its sentences need a gradient or,
            with the schedule `ring`, if any of its inputs does. Then all ranks take part in backward, also a rank that
            has no sentences.
        narrow: Whether half-precision vectors keep their type, for matrix units that add products in float32. If
            not, they are converted to float32.
    """
    patches, sentences = inputs.zeroed_patches(), inputs.sentences.contiguous()
    # torch runs backward only if an input needs a gradient. This one makes the rank take part; nobody reads it.
    if backward_communicates and not sentences.requires_grad:
        sentences = sentences.detach().requires_grad_()
    dtype_of = product_dtype if narrow else compute_dtype
    return RegionBatch(
        patches=patches.to(dtype_of(patches, sentences)).contiguous(),
        sentences=sentences,
        columns=ColumnAllGather((sentences,), sentence_partition, ranks, inputs.schedule),
        owner=gather_rows(inputs.owner + image_partition.first, sentence_partition, ranks),
        scale=scale_tensor(inputs.scale, patches, compute_dtype(patches, sentences)),
        sharpness=inputs.sharpness,
        patch_mask=inputs.patch_mask,
        mining=inputs.mining,
        image_partition=image_partition,
        sentence_partition=sentence_partition,
        ranks=ranks,
    )


def replicated_batch(
    inputs: RegionInputs, image_partition: Partition, sentence_partition: Partition, ranks: Ranks
) -> RegionBatch:
    """Returns the batch in which every rank holds all images and sentences, for the reference.

    This is a collective: all ranks must call it. Each rank returns the gradients of its own images and sentences only.
    `gather_replicated` multiplies these gradients by the number of ranks, because DDP and DeepSpeed take a mean over
    the ranks.
    """
    dtype = compute_dtype(inputs.patches, inputs.sentences)
    mask = inputs.patch_mask
    gathered = replace(
        inputs,
        patches=gather_replicated(inputs.patches, image_partition, ranks, dtype=dtype),
        sentences=gather_replicated(inputs.sentences, sentence_partition, ranks, dtype=dtype),
        owner=gather_rows(inputs.owner + image_partition.first, sentence_partition, ranks),
        patch_mask=None if mask is None else gather_rows(mask, image_partition, ranks),
    )
    partitions = image_partition.on_one_rank(), sentence_partition.on_one_rank()
    return sharded_batch(gathered, *partitions, SINGLE_RANK, backward_communicates=False, narrow=False)
