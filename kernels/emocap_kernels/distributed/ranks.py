"""Who shares one global batch, and how its rows lie on them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
import torch.distributed as dist

from emocap_kernels.distributed.hosts import exchanged, meeting_beside
from emocap_kernels.errors import ArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Names the machine of this process where the host name does not, as for several containers of one machine.
NODE_VARIABLE = "EMOCAP_NODE"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that share one global batch; without a group, one rank that never communicates.

    Attributes:
        group: Their tensors travel here.
        beside: Their processes talk here if the group does not speak for the CPU.
        size: How many there are.
        rank: This one.
        node: How many of them share a machine, if machines hold equally many in rank order; else `size`.
    """

    group: ProcessGroup | None
    beside: dist.ProcessGroupGloo | None
    size: int
    rank: int
    node: int

    def exchanged(self, numbers: Sequence[int]) -> list[list[int]]:
        """The whole numbers of every process, without waiting for a device."""
        return [list(numbers)] if self.group is None else exchanged(numbers, self.group, self.beside)


ALONE = Ranks(group=None, beside=None, size=1, rank=0, node=1)

# What was found out about a group, without a reference to it: it must end when its owner ends it.
_KNOWN: WeakKeyDictionary[ProcessGroup, tuple[dist.ProcessGroupGloo | None, int]] = WeakKeyDictionary()


def ranks_of(group: ProcessGroup | None, device: torch.device) -> Ranks:
    """The members of `group`; its first call is a collective, in which they learn who shares a machine.

    Tensors will travel between `device` and those of the others.
    """
    if group is None:
        return ALONE
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ArgumentError("This process is not in the group that it was given; only members may call the loss.")
    if group not in _KNOWN:
        _KNOWN[group] = _acquainted(group, device)
    beside, node = _KNOWN[group]
    return Ranks(group, beside, size, rank, node)


def _acquainted(group: ProcessGroup, device: torch.device) -> tuple[dist.ProcessGroupGloo | None, int]:
    if dist.get_world_size(group) == 1:
        return None, 1
    _greet(group, device)
    beside = meeting_beside(group)
    name = os.environ.get(NODE_VARIABLE) or socket.gethostname()
    (names,) = zip(*exchanged([crc32(name.encode())], group, beside), strict=True)
    return beside, ranks_per_node(names)


def _greet(group: ProcessGroup, device: torch.device) -> None:
    """NCCL wants a collective of all members before messages between some of them."""
    if "nccl" in dist.get_backend_config(group):
        dist.all_reduce(torch.zeros(1, device=device), group=group)


def ranks_per_node(names: tuple[int, ...]) -> int:
    """Ranks of a machine, from the machine of each rank; all of them if machines do not hold equally many in order."""
    node = next((rank for rank, name in enumerate(names) if name != names[0]), len(names))
    runs = [names[first : first + node] for first in range(0, len(names), node)]
    regular = all(len(set(run)) == 1 and len(run) == node for run in runs)
    distinct = len({run[0] for run in runs}) == len(runs)
    return node if regular and distinct else len(names)


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
        return self.rows_of(self.rank).start

    @property
    def local(self) -> int:
        return self.counts[self.rank]

    @property
    def own(self) -> slice:
        return self.rows_of(self.rank)

    def rows_of(self, rank: int) -> slice:
        first = sum(self.counts[:rank])
        return slice(first, first + self.counts[rank])

    def indices(self, device: torch.device) -> torch.Tensor:
        """Global indices of the local rows, int64 [local]."""
        return torch.arange(self.first, self.first + self.local, device=device)

    def whole(self) -> Span:
        """The same rows, seen by a rank that holds them all."""
        return Span(counts=(self.total,), rank=0)
