"""Wraps torch's collectives for all supported versions of torch, and counts the bytes that a rank receives.

Apart from `ranks`, no other module of the package calls collectives of torch. `ranks` calls two: an all-reduce when it
first sees a group with NCCL, and an all-gather of integers on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# `vectors` are features and their gradients; `numbers` are statistics and metadata.
ReceivedKind = Literal["vectors", "numbers"]

# torch 2.13 renamed the function, and its old name raises a warning there.
_all_gather: Callable[..., Any] = getattr(
    dist, "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
)

# One side of a message: the rank at the other end, and the tensor that is sent or filled.
Message = tuple[int, Tensor]

# All threads of the process share the list, because torch runs backward on a GPU in threads of its own.
_counters: list[Counter[ReceivedKind]] = []


@contextmanager
def count_received_bytes() -> Generator[Counter[ReceivedKind]]:
    """Counts the bytes that this rank receives while the context is open, in all threads.

    The counter has two entries. `vectors` is the number of bytes in messages from rank to rank (features and their
    gradients). `numbers` is the number of bytes in all-gathers and all-reduces (mostly statistics and metadata). Both
    are computed from the sizes of the tensors; nothing is measured on the network.

    Example:
        ```python
        with count_received_bytes() as received:
            loss = contrastive_loss(image, text, scale, group=group).loss
        print(received["vectors"], received["numbers"])
        ```
    """
    counter: Counter[ReceivedKind] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        # Counters are compared by identity, because two that counted the same are equal.
        _counters[:] = [each for each in _counters if each is not counter]


def add_received_bytes(kind: ReceivedKind, received_bytes: int) -> None:
    """Adds `received_bytes` to the entry `kind` of every counter whose `count_received_bytes` context is open."""
    for counter in _counters:
        counter[kind] += received_bytes


def all_gather(local: Tensor, size: int, group: ProcessGroup | None) -> Tensor:
    """Returns the tensors of all ranks, [size, *local.shape], where `size` is the number of ranks.

    This is a collective: all ranks must call it, with equal shapes.
    """
    received = local.new_empty(size, *local.shape)
    # `received` is contiguous, so its `flatten` is a view, and the call fills `received`.
    add_received_bytes("numbers", (size - 1) * local.nbytes)
    _all_gather(received.flatten(), local.flatten().contiguous(), group=group)
    return received


def all_reduce_(values: Tensor, operation: Any, size: int, group: ProcessGroup | None) -> None:
    """Reduces `values` over all ranks by `operation`, a `dist.ReduceOp`, in place.

    This is a collective: all ranks must call it. `size` is the number of ranks.
    """
    # In a ring of ranks, each receives all but a 1 / size part twice.
    add_received_bytes("numbers", 2 * (size - 1) * values.nbytes // size)
    dist.all_reduce(values, op=operation, group=group)


def start_messages(
    sends: Sequence[Message], receives: Sequence[Message], group: ProcessGroup | None
) -> list[dist.Work]:
    """Starts to send and to receive tensors, and returns handles whose `wait` completes the messages.

    Empty tensors are neither sent nor received. Two ranks match their messages by order alone, so all ranks must start
    their messages in the same order.

    Args:
        sends: (receiving rank, contiguous tensor) for each message that this rank sends. The tensors must not be
            changed before the messages are complete.
        receives: (sending rank, contiguous tensor) for each message that this rank receives. The tensors are filled.
            Each has the shape and type of the tensor that the other rank sends.
        group: The group in which the ranks of the messages are numbered.
    """
    # `group_peer` is a rank within the group, whereas the argument `peer` of torch is a rank of the world.
    calls = [dist.P2POp(dist.isend, each, group=group, group_peer=peer) for peer, each in sends if each.numel()]
    calls += [dist.P2POp(dist.irecv, each, group=group, group_peer=peer) for peer, each in receives if each.numel()]
    add_received_bytes("vectors", sum(each.nbytes for _, each in receives))
    return dist.batch_isend_irecv(calls) if calls else []
