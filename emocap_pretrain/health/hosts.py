"""How busy every host of the job is, for rank 0 to write down."""

import socket
from pathlib import Path

from emocap_pretrain.health.gather import gathered
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.tracking.hosts import HostMetrics, by_host, gpu_count

EVERY_S = 15.0


class Hosts:
    """All hosts; the first rank of each reads for it. A collective at its begin.

    Args:
        world: All ranks.
        folder: On the disk of each host that may fill up.
    """

    def __init__(self, world: RankGroup, folder: Path) -> None:
        self._world, self._next_step = world, 0
        folder.mkdir(parents=True, exist_ok=True)
        readers = world.gather(socket.gethostname() if world.info.local_rank == 0 else None)
        self._hosts = dict[int, str]((rank, host) for rank, host in enumerate(readers) if host)
        self._metrics = HostMetrics(gpus=world.maximum([gpu_count()])[0], folder=folder)

    def row(self, step: int, step_s: float) -> dict[str, float]:
        """Metrics by their names in MLflow, one set for each host, about every `EVERY_S`; a collective.

        Args:
            step: Steps done.
            step_s: Seconds of a step; both are the same on all ranks, so all agree when.
        """
        if step < self._next_step:
            return {}
        self._next_step = step + max(1, int(EVERY_S / step_s))
        names = self._metrics.names
        reads = self._world.rank in self._hosts
        own = self._metrics.read() if reads else dict.fromkeys(names, 0.0)
        table = gathered(self._world, [own[name] for name in names])
        return by_host((host, dict(zip(names, table[rank], strict=True))) for rank, host in self._hosts.items())
