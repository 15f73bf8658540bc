"""torch's collectives by the names of any supported version, each counted (see `traffic`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from emocap_kernels.distributed import traffic

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# torch 2.13 renamed it, and warns of the old name.
_all_gather: Callable[..., Any] = getattr(
    dist, "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
)

# One side of a hop: the rank at the other end, and the tensor that goes there or comes from there.
Message = tuple[int, Tensor]


def all_gather(local: Tensor, size: int, group: ProcessGroup | None) -> Tensor:
    """What all ranks hold, [size, ...]; their tensors have the same shape."""
    received = local.new_empty(size, *local.shape)
    traffic.count("numbers", (size - 1) * local.nbytes)
    _all_gather(received.flatten(), local.flatten().contiguous(), group=group)
    return received


def all_reduce_(values: Tensor, operation: Any, size: int, group: ProcessGroup | None) -> None:
    # A ring of ranks passes on all but a share of 1 / size, twice.
    traffic.count("numbers", 2 * (size - 1) * values.nbytes // size)
    dist.all_reduce(values, op=operation, group=group)


def post(sends: Sequence[Message], receives: Sequence[Message], group: ProcessGroup | None) -> list[dist.Work]:
    """Starts messages between pairs of ranks; empty ones are left out on both sides.

    Two ranks match their messages by order alone, so all ranks start theirs in one order.
    """
    calls = [dist.P2POp(dist.isend, each, group=group, group_peer=peer) for peer, each in sends if each.numel()]
    calls += [dist.P2POp(dist.irecv, each, group=group, group_peer=peer) for peer, each in receives if each.numel()]
    traffic.count("vectors", sum(each.nbytes for _, each in receives))
    return dist.batch_isend_irecv(calls) if calls else []
