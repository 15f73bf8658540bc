"""Gathers and reduces small tensors over the ranks. Every function is a collective: all ranks must call it.

The module `columns` exchanges the vectors, except for those of the backend `reference`, which this module gathers. A
function whose name ends in an underscore overwrites its argument. With one rank nothing is communicated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.distributed.collectives import all_gather, all_reduce_
from emocap_kernels.distributed.ranks import Partition, Ranks


def gather_rows(local: Tensor, partition: Partition, ranks: Ranks) -> Tensor:
    """Returns the rows of all ranks in rank order, [total, ...], without a gradient.

    This is a collective: all ranks must call it.

    Args:
        local: [local, ...]; ranks may hold different numbers of rows.
        partition: The division of the rows.
        ranks: The ranks of the batch.
    """
    if ranks.size == 1:
        return local.detach()
    # All ranks take this branch or none does: the total and the shape of a row are equal on all ranks.
    if partition.total == 0 or local.shape[1:].numel() == 0:
        return local.new_empty(partition.total, *local.shape[1:])
    # torch's all-gather needs equal shapes, so shorter parts are padded to the longest one and cut afterwards.
    longest = max(partition.counts)
    received = all_gather(_padded(local.detach(), longest), ranks.size, ranks.group)
    return torch.cat([rows[:count] for rows, count in zip(received, partition.counts, strict=True)])


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Returns the sum of `values` over the ranks.

    The values are added in rank order, so that the result is equal on every rank to the bit.

    This is a collective: all ranks must call it.
    """
    return values if ranks.size == 1 else all_gather(values, ranks.size, ranks.group).sum(0)


def all_reduce_sum_(values: Tensor, ranks: Ranks) -> None:
    """Replaces `values` by their sum over the ranks. This is a collective: all ranks must call it."""
    if ranks.size > 1:
        all_reduce_(values, dist.ReduceOp.SUM, ranks.size, ranks.group)


def all_reduce_max_(values: Tensor, ranks: Ranks) -> None:
    """Replaces `values` by their maximum over the ranks. This is a collective: all ranks must call it."""
    if ranks.size > 1:
        all_reduce_(values, dist.ReduceOp.MAX, ranks.size, ranks.group)


def all_reduce_min_(values: Tensor, ranks: Ranks) -> None:
    """Replaces `values` by their minimum over the ranks. This is a collective: all ranks must call it."""
    if ranks.size > 1:
        all_reduce_(values, dist.ReduceOp.MIN, ranks.size, ranks.group)


class _GatherReplicated(Function):
    """Gathers rows for a computation that every rank repeats in full, as the backend `reference` does.

    Each rank then computes the whole gradient of its own rows. DDP and DeepSpeed take a mean over ranks, which divides
    this gradient by the number of ranks. Backward multiplies by that number to compensate.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, partition: Partition, ranks: Ranks, dtype: torch.dtype) -> Tensor:
        ctx.partition, ctx.ranks, ctx.dtype = partition, ranks, local.dtype
        return gather_rows(local, partition, ranks).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return (grad_outputs[0][ctx.partition.own] * ctx.ranks.size).to(ctx.dtype), None, None, None


class _SumOfParts(Function):
    """Adds up the parts of a loss, of which each rank has computed one.

    Backward multiplies the gradient by the number of ranks, so that a mean over ranks, as DDP and DeepSpeed take it,
    gives the gradient of the sum.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.size = ranks.size
        return sum_over_ranks(part, ranks)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] * ctx.size, None


def gather_replicated(local: Tensor, partition: Partition, ranks: Ranks, *, dtype: torch.dtype) -> Tensor:
    """Returns the rows of all ranks, converted to `dtype`. The result is differentiable.

    It serves a computation that every rank repeats in full. Backward communicates nothing: each rank takes the gradient
    of its own rows, and multiplies it by the number of ranks, because DDP and DeepSpeed take a mean over the ranks.
    This is a collective: all ranks must call it.
    """
    if ranks.size == 1:
        return local.to(dtype)
    return _GatherReplicated.apply(local, partition, ranks, dtype)  # pyright: ignore[reportReturnType]


def sum_of_parts(part: Tensor, ranks: Ranks) -> Tensor:
    """Returns the sum of `part` over the ranks, each of which has computed one part of a loss.

    Backward scales the gradients so that their mean over the ranks is the gradient of the sum. This is a collective:
    all ranks must call it.
    """
    return part if ranks.size == 1 else _SumOfParts.apply(part, ranks)  # pyright: ignore[reportReturnType]
