"""One global batch on many ranks: who holds which rows, and the few collectives of the one-sided gather.

Every rank computes the block (its own images) x (all texts), so only the texts travel: an all-gather of their vectors
forward, a reduce-scatter of their gradients backward, and sums of B numbers for the columns. No call here depends on
the values of the data, so all ranks issue the same collectives in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.errors import ArgumentError, KernelError, RanksDisagreeError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# torch 2.13 renamed them, and warns of the old names.
_RENAMED = hasattr(dist, "all_gather_single")
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single" if _RENAMED else "all_gather_into_tensor")
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single" if _RENAMED else "reduce_scatter_tensor")

# How many facts the ranks tell each other at most; a fixed number, so that a rank without facts can answer.
MOST_FACTS = 15


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that share one global batch; without a group, one rank that never communicates."""

    group: ProcessGroup | None
    size: int
    rank: int


ALONE = Ranks(group=None, size=1, rank=0)


def ranks_of(group: ProcessGroup | None) -> Ranks:
    if group is None:
        return ALONE
    rank = dist.get_rank(group)
    if rank < 0:
        raise ArgumentError("This process is not in the group that it was given; only members may call the loss.")
    return Ranks(group=group, size=dist.get_world_size(group), rank=rank)


@dataclass(frozen=True, slots=True)
class Span:
    """How the rows of the global batch lie on the ranks; the global index is rank order, then row."""

    counts: tuple[int, ...]
    rank: int

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def first(self) -> int:
        return sum(self.counts[: self.rank])

    @property
    def local(self) -> int:
        return self.counts[self.rank]

    @property
    def own(self) -> slice:
        return slice(self.first, self.first + self.local)

    def indices(self, device: torch.device) -> Tensor:
        """Global indices of the local rows, int64 [local]."""
        return torch.arange(self.first, self.first + self.local, device=device)

    def whole(self) -> Span:
        """The same rows, seen by a rank that holds them all."""
        return Span(counts=(self.total,), rank=0)


def agreed(
    ranks: Ranks, describe: Callable[[], Mapping[str, int]], *, alike: tuple[str, ...], device: torch.device
) -> list[Mapping[str, int]]:
    """What every rank says of its inputs, in rank order; a refusal on one rank is an error on all.

    Args:
        ranks: Who takes part.
        describe: Checks the local inputs and says the facts, the same keys on every rank.
        alike: The facts in which all ranks must agree.
        device: Where the numbers travel.

    Raises:
        RanksDisagreeError: If a rank refused its inputs, or two ranks differ in one of `alike`.
    """
    if ranks.size == 1:
        return [describe()]
    refusal: KernelError | None = None
    facts: Mapping[str, int] = {}
    try:
        facts = describe()
    except KernelError as error:
        refusal = error
    # One exchange for both: a rank that refuses sends zeros in the place of its facts.
    numbers = [int(refusal is not None), *facts.values()]
    table = _exchange(ranks, numbers + [0] * (MOST_FACTS + 1 - len(numbers)), device)
    if refusal is not None:
        raise refusal
    refused = [str(rank) for rank, row in enumerate(table) if row[0]]
    if refused:
        raise RanksDisagreeError(f"rank {', '.join(refused)} refused its inputs; its own error says why.")
    said = [dict(zip(facts, row[1:], strict=False)) for row in table]
    for name in alike:
        _require_alike(name, [row[name] for row in said])
    return list(said)


def _require_alike(name: str, values: list[int]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise RanksDisagreeError(
                f"{name} is {value} on rank {rank} and {values[0]} on rank 0; all ranks of a group must agree."
            )


def _exchange(ranks: Ranks, numbers: list[int], device: torch.device) -> list[list[int]]:
    mine = torch.tensor(numbers, dtype=torch.int64, device=device)
    everyone = mine.new_empty(ranks.size * len(numbers))
    _all_gather(everyone, mine, group=ranks.group)
    return everyone.view(ranks.size, len(numbers)).tolist()


def gather_rows(local: Tensor, span: Span, ranks: Ranks) -> Tensor:
    """Rows of all ranks in rank order: [local, ...] -> [total, ...]. No gradient."""
    if ranks.size == 1:
        return local.detach()
    if span.total == 0 or local.shape[1:].numel() == 0:
        return local.new_empty(span.total, *local.shape[1:])
    longest = max(span.counts)
    received = local.new_empty(ranks.size * longest, *local.shape[1:])
    _all_gather(received, _padded(local.detach(), longest), group=ranks.group)
    if min(span.counts) == longest:
        return received
    return torch.cat([received[rank * longest :][:count] for rank, count in enumerate(span.counts)])


def scatter_sum(partial: Tensor, span: Span, ranks: Ranks) -> Tensor:
    """This rank's rows of the sum over ranks: [total, ...] -> [local, ...]."""
    if ranks.size == 1 or span.total == 0:
        return partial
    longest = max(span.counts)
    parts = [_padded(part, longest) for part in partial.split(list(span.counts))]
    received = partial.new_empty(longest, *partial.shape[1:])
    _reduce_scatter(received, torch.cat(parts), group=ranks.group)
    return received[: span.local]


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


def sum_over(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks, added in rank order: bit for bit the same on every rank."""
    if ranks.size == 1:
        return values
    received = values.new_empty(ranks.size, *values.shape)
    _all_gather(received.flatten(), values.flatten().contiguous(), group=ranks.group)
    return received.sum(0)


def add_over_(values: Tensor, ranks: Ranks) -> None:
    if ranks.size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=ranks.group)


def largest_over_(values: Tensor, ranks: Ranks) -> None:
    if ranks.size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=ranks.group)


def smallest_over_(values: Tensor, ranks: Ranks) -> None:
    if ranks.size > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MIN, group=ranks.group)


class _GatherToSplit(Function):
    """Every rank does its part of the work with the gathered rows, so their gradients are summed."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, span: Span, ranks: Ranks, dtype: torch.dtype) -> Tensor:
        ctx.span, ctx.ranks, ctx.dtype = span, ranks, local.dtype
        return gather_rows(local, span, ranks).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return scatter_sum(grad_outputs[0], ctx.span, ctx.ranks).to(ctx.dtype), None, None, None


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


def gather_to_split(local: Tensor, span: Span, ranks: Ranks, *, dtype: torch.dtype, needs_gradient: bool) -> Tensor:
    """Gathered rows as `dtype`, whose gradient is summed over ranks; travels in the input's own dtype.

    Args:
        local: [local, ...].
        span: Where the rows lie.
        ranks: Who takes part.
        dtype: Of the result.
        needs_gradient: If any rank needs one; then every rank takes part in the backward, also one whose own rows
            need none (it may hold no rows).
    """
    if ranks.size == 1:
        return local.to(dtype)
    if needs_gradient and not local.requires_grad:
        local = local.detach().requires_grad_()
    return _GatherToSplit.apply(local, span, ranks, dtype)  # pyright: ignore[reportReturnType]


def gather_to_repeat(local: Tensor, span: Span, ranks: Ranks, *, dtype: torch.dtype) -> Tensor:
    """Gathered rows as `dtype`, for work that every rank repeats in whole."""
    if ranks.size == 1:
        return local.to(dtype)
    return _GatherToRepeat.apply(local, span, ranks, dtype)  # pyright: ignore[reportReturnType]


def sum_of_parts(part: Tensor, ranks: Ranks) -> Tensor:
    return part if ranks.size == 1 else _SumOfParts.apply(part, ranks)  # pyright: ignore[reportReturnType]
