"""Who shares one global batch, and how its rows lie on them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
import torch.distributed as dist

from emocap_kernels.distributed.hosts import Hosts
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
        hosts: Their processes talk here, without waiting for a device.
        size: How many there are.
        rank: This one.
        node: How many of them share a machine, if machines hold equally many in rank order; else `size`.
    """

    group: ProcessGroup | None
    hosts: Hosts | None
    size: int
    rank: int
    node: int


ALONE = Ranks(group=None, hosts=None, size=1, rank=0, node=1)

_KNOWN: WeakKeyDictionary[ProcessGroup, Ranks] = WeakKeyDictionary()


def ranks_of(group: ProcessGroup | None) -> Ranks:
    """The members of `group`; its first call is a collective, in which they learn who shares a machine."""
    if group is None:
        return ALONE
    if group not in _KNOWN:
        _KNOWN[group] = _acquainted(group)
    return _KNOWN[group]


def _acquainted(group: ProcessGroup) -> Ranks:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ArgumentError("This process is not in the group that it was given; only members may call the loss.")
    if size == 1:
        return Ranks(group, None, size, rank, size)
    _greet(group)
    hosts = Hosts(group)
    name = os.environ.get(NODE_VARIABLE) or socket.gethostname()
    (names,) = zip(*hosts.exchanged([crc32(name.encode())]), strict=True)
    return Ranks(group, hosts, size, rank, ranks_per_node(names))


def _greet(group: ProcessGroup) -> None:
    """NCCL wants a collective of all members before messages between some of them."""
    if "nccl" in dist.get_backend_config(group):
        dist.all_reduce(torch.zeros(1, device="cuda"), group=group)


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
