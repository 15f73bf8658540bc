"""Describes the devices and the memory of this host."""

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Describes this host.

    Attributes:
        gpus: The name and the bytes of memory of each GPU that torch can use.
        cores: Number of cores that this process may use.
        memory_bytes: Bytes of memory of the host.
    """

    gpus: tuple[tuple[str, int], ...] = ()
    cores: int = 1
    memory_bytes: int = 0

    @property
    def gpu_bytes(self) -> int:
        """Returns the bytes of memory of the smallest GPU; 0 without a GPU."""
        return min((size for _, size in self.gpus), default=0)

    def __str__(self) -> str:
        names = [name for name, _ in self.gpus]
        kinds = [f"{names.count(name)} x {name}, {self.gpu_bytes / 2**30:.0f} GiB" for name in dict.fromkeys(names)]
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        return ", ".join(
            [*kinds, cores, f"{self.memory_bytes / 2**30:.0f} GiB of memory", *([] if kinds else ["no GPU"])]
        )


def hardware_here() -> Hardware:
    """Returns the description of this host. This imports torch."""
    import torch

    devices = [torch.cuda.get_device_properties(each) for each in range(torch.cuda.device_count())]
    return Hardware(
        gpus=tuple((each.name, each.total_memory) for each in devices),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
    )
