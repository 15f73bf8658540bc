"""How the processes of a group tell each other whole numbers, on the CPU: no device is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from emocap_kernels.distributed import traffic
from emocap_kernels.distributed.collectives import all_gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# As torch's own; a process that ends closes its connections, which the others see at once.
TIMEOUT = timedelta(minutes=30)


class Hosts:
    """The processes of one group; made by all of them at once."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group, self._size = group, dist.get_world_size(group)
        self._beside = None
        if "cpu:" not in dist.get_backend_config(group):
            # Not `new_group`: every process of the world would have to call it, for every group, in one order.
            store = dist.PrefixStore("emocap_kernels.hosts/", group.get_group_store())
            self._beside = dist.ProcessGroupGloo(store, dist.get_rank(group), self._size, TIMEOUT)

    def exchanged(self, numbers: Sequence[int]) -> list[list[int]]:
        """Those of every process, in rank order; all give equally many."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        if self._beside is None:
            return all_gather(mine, self._size, self._group).tolist()
        traffic.count("numbers", (self._size - 1) * mine.nbytes)
        received = [torch.empty_like(mine) for _ in range(self._size)]
        self._beside.allgather([received], [mine]).wait()
        return [each.tolist() for each in received]
