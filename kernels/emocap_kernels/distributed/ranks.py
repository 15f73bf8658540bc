"""Describes the ranks that share a global batch and the division of its rows, and exchanges integers between ranks.

A loss first gets its `Ranks` from `ranks_of`. Then the ranks exchange facts about their inputs (`consistency`), from
which the loss makes a `Partition`. All later messages follow from the `Ranks` and the `Partition`: `schedule` plans
them, `columns` sends vectors, and `reductions` sends numbers.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from emocap_kernels.distributed.collectives import add_received_bytes, all_gather
from emocap_kernels.errors import ArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# This environment variable names the machine of a process where the host name does not, for instance where several
# containers run on one machine.
NODE_VARIABLE = "EMOCAP_NODE"
# torch's own default. A process that ends closes its connections, which the others notice at once.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Describes the ranks that share one global batch. Without a group there is one rank, which never communicates.

    Attributes:
        group: The process group that carries tensors.
        cpu_group: A gloo group for integers, if `group` does not support CPU tensors (as with NCCL); otherwise None.
        size: Number of ranks.
        rank: Index of this rank in the group.
        node: Number of ranks on each machine, if it is the same for all machines and the ranks of each machine have
            consecutive indices; otherwise `size`.
    """

    group: ProcessGroup | None
    cpu_group: dist.ProcessGroupGloo | None
    size: int
    rank: int
    node: int


SINGLE_RANK = Ranks(group=None, cpu_group=None, size=1, rank=0, node=1)

# The CPU group and the number of ranks on each machine, for each group that was used. The references are weak, so that
# a group ends when its owner drops it. A cache that held the groups ended processes by SIGABRT, because the threads of
# gloo outlived `destroy_process_group` (docs/log.md, 2026-11-23).
_KNOWN: WeakKeyDictionary[ProcessGroup, tuple[dist.ProcessGroupGloo | None, int]] = WeakKeyDictionary()


def ranks_of(group: ProcessGroup | None, device: torch.device) -> Ranks:
    """Returns the ranks of `group`.

    The first call for a group is a collective of all its members, which tell each other on which machine they run.

    Args:
        group: None means one rank that never communicates.
        device: The device of the tensors that will be exchanged.

    Raises:
        ArgumentError: If this process is not in the group.
    """
    if group is None:
        return SINGLE_RANK
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ArgumentError("This process is not a member of group; only its members may call the loss.")
    # A group is new to all of its members or to none, because each loss is a collective of the group.
    if group not in _KNOWN:
        _KNOWN[group] = _find_out(group, device)
    cpu_group, node = _KNOWN[group]
    return Ranks(group, cpu_group, size, rank, node)


def _find_out(group: ProcessGroup, device: torch.device) -> tuple[dist.ProcessGroupGloo | None, int]:
    if dist.get_world_size(group) == 1:
        return None, 1
    # NCCL needs a collective of all members before it can send messages between some of them.
    if "nccl" in dist.get_backend_config(group):
        dist.all_reduce(torch.zeros(1, device=device), group=group)
    cpu_group = new_cpu_group(group)
    # Only integers are exchanged, so the name of a machine is sent as its checksum.
    name = os.environ.get(NODE_VARIABLE) or socket.gethostname()
    (names,) = zip(*all_gather_integers([crc32(name.encode())], group, cpu_group), strict=True)
    return cpu_group, ranks_per_node(names)


def ranks_per_node(names: tuple[int, ...]) -> int:
    """Returns the number of ranks on each machine.

    `names` has one entry for each rank, in rank order. Ranks of one machine have equal entries. If machines have
    different numbers of ranks, or if the ranks of a machine are not consecutive, all ranks count as one machine. For
    example, the result for the names (7, 7, 9, 9) is 2, and for (7, 9, 7, 9) it is 4.
    """
    node = next((rank for rank, name in enumerate(names) if name != names[0]), len(names))
    runs = [names[first : first + node] for first in range(0, len(names), node)]
    regular = all(len(set(run)) == 1 and len(run) == node for run in runs)
    # A name in two runs means that the ranks of this machine are not consecutive.
    distinct = len({run[0] for run in runs}) == len(runs)
    return node if regular and distinct else len(names)


def new_cpu_group(group: ProcessGroup) -> dist.ProcessGroupGloo | None:
    """Returns a gloo group with the members of `group`, or None if `group` itself supports CPU tensors.

    This is a collective: all members must call it.
    """
    if "cpu:" in dist.get_backend_config(group):
        return None
    # `dist.new_group` cannot be used here: every process of the world would have to call it, for every group, in the
    # same order. With `use_local_synchronization=True` it hangs if ranks belong to different numbers of groups, because
    # the name of the new group counts them (docs/log.md, 2026-11-23). The prefix separates the keys from those of
    # `group`, whose store is used again.
    store = PrefixStore("emocap_kernels.hosts/", group.get_group_store())
    return dist.ProcessGroupGloo(store, dist.get_rank(group), dist.get_world_size(group), TIMEOUT)


def all_gather_integers(
    numbers: Sequence[int], group: ProcessGroup, cpu_group: dist.ProcessGroupGloo | None
) -> list[list[int]]:
    """Returns the integers of every rank, in rank order.

    This is a collective on the CPU: all ranks must call it, with equally many integers.
    """
    mine, size = torch.tensor(numbers, dtype=torch.int64), dist.get_world_size(group)
    if cpu_group is None:
        return all_gather(mine, size, group).tolist()
    add_received_bytes("numbers", (size - 1) * mine.nbytes)
    received = [torch.empty_like(mine) for _ in range(size)]
    cpu_group.allgather([received], [mine]).wait()  # pyright: ignore[reportAttributeAccessIssue]
    return [each.tolist() for each in received]


@dataclass(frozen=True, slots=True)
class Partition:
    """Describes how the rows of the global batch are divided among the ranks.

    The global index of a row is its local index plus the number of rows of all lower ranks. For example, with counts
    (3, 0, 2) rank 2 holds the rows 3 and 4: `Partition((3, 0, 2), rank=2).own` is `slice(3, 5)`.

    Attributes:
        counts: Number of rows of each rank; 0 is allowed.
        rank: Index of this rank.
    """

    counts: tuple[int, ...]
    rank: int

    @property
    def total(self) -> int:
        """Returns the number of rows of all ranks."""
        return sum(self.counts)

    @property
    def first(self) -> int:
        """Returns the global index of local row 0."""
        return self.rows_of(self.rank).start

    @property
    def local(self) -> int:
        """Returns the number of rows of this rank."""
        return self.counts[self.rank]

    @property
    def own(self) -> slice:
        """Returns the global indices of the rows of this rank."""
        return self.rows_of(self.rank)

    def rows_of(self, rank: int) -> slice:
        """Returns the global indices of the rows of `rank`."""
        first = sum(self.counts[:rank])
        return slice(first, first + self.counts[rank])

    def indices(self, device: torch.device) -> torch.Tensor:
        """Returns the global indices of the local rows, int64 [local]."""
        return torch.arange(self.first, self.first + self.local, device=device)

    def on_one_rank(self) -> Partition:
        """Returns the partition in which one rank holds all the rows."""
        return Partition(counts=(self.total,), rank=0)
