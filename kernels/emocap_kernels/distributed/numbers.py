"""What ranks tell each other beside vectors: a few numbers for each row. Every call is a collective of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.distributed.collectives import all_gather, all_reduce_
from emocap_kernels.distributed.ranks import Ranks, Span


def gather_rows(local: Tensor, span: Span, ranks: Ranks) -> Tensor:
    """Rows of all ranks in rank order: [local, ...] -> [total, ...]. No gradient."""
    if ranks.size == 1:
        return local.detach()
    if span.total == 0 or local.shape[1:].numel() == 0:
        return local.new_empty(span.total, *local.shape[1:])
    longest = max(span.counts)
    received = all_gather(_padded(local.detach(), longest), ranks.size, ranks.group)
    return torch.cat([rows[:count] for rows, count in zip(received, span.counts, strict=True)])


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


def sum_over(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks, added in rank order: bit for bit the same on every rank."""
    return values if ranks.size == 1 else all_gather(values, ranks.size, ranks.group).sum(0)


def add_over_(values: Tensor, ranks: Ranks) -> None:
    if ranks.size > 1:
        all_reduce_(values, dist.ReduceOp.SUM, ranks.size, ranks.group)


def largest_over_(values: Tensor, ranks: Ranks) -> None:
    if ranks.size > 1:
        all_reduce_(values, dist.ReduceOp.MAX, ranks.size, ranks.group)


def smallest_over_(values: Tensor, ranks: Ranks) -> None:
    if ranks.size > 1:
        all_reduce_(values, dist.ReduceOp.MIN, ranks.size, ranks.group)


class _GatherToRepeat(Function):
    """Every rank does all of the work, so each already holds the whole gradient of its rows.

    A mean over ranks divides by their number what only one of them contributes; hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, span: Span, ranks: Ranks, dtype: torch.dtype) -> Tensor:
        ctx.span, ctx.ranks, ctx.dtype = span, ranks, local.dtype
        return gather_rows(local, span, ranks).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return (grad_outputs[0][ctx.span.own] * ctx.ranks.size).to(ctx.dtype), None, None, None


class _SumOfParts(Function):
    """The sum over ranks of what each computed alone; a mean over ranks of the gradients is its gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.size = ranks.size
        return sum_over(part, ranks)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] * ctx.size, None


def gather_to_repeat(local: Tensor, span: Span, ranks: Ranks, *, dtype: torch.dtype) -> Tensor:
    """Gathered rows as `dtype`, for work that every rank repeats in whole."""
    if ranks.size == 1:
        return local.to(dtype)
    return _GatherToRepeat.apply(local, span, ranks, dtype)  # pyright: ignore[reportReturnType]


def sum_of_parts(part: Tensor, ranks: Ranks) -> Tensor:
    return part if ranks.size == 1 else _SumOfParts.apply(part, ranks)  # pyright: ignore[reportReturnType]
