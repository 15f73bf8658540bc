"""How the processes of a group tell each other whole numbers, on the CPU: no device is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from emocap_kernels.distributed import traffic
from emocap_kernels.distributed.collectives import all_gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# As torch's own; a process that ends closes its connections, which the others see at once.
TIMEOUT = timedelta(minutes=30)


def meeting_beside(group: ProcessGroup) -> dist.ProcessGroupGloo | None:
    """Where the processes of a group talk that does not speak for the CPU itself; all of them ask at once."""
    if "cpu:" in dist.get_backend_config(group):
        return None
    # Not `new_group`: every process of the world would have to call it, for every group, in one order.
    store = PrefixStore("emocap_kernels.hosts/", group.get_group_store())
    return dist.ProcessGroupGloo(store, dist.get_rank(group), dist.get_world_size(group), TIMEOUT)


def exchanged(numbers: Sequence[int], group: ProcessGroup, beside: dist.ProcessGroupGloo | None) -> list[list[int]]:
    """The numbers of every process, in rank order; all give equally many."""
    mine, size = torch.tensor(numbers, dtype=torch.int64), dist.get_world_size(group)
    if beside is None:
        return all_gather(mine, size, group).tolist()
    traffic.count("numbers", (size - 1) * mine.nbytes)
    received = [torch.empty_like(mine) for _ in range(size)]
    beside.allgather([received], [mine]).wait()  # pyright: ignore[reportAttributeAccessIssue]
    return [each.tolist() for each in received]
