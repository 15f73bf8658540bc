"""Measures how busy the hosts of the job are, under the names of MLflow's system metrics.

On each host the rank with `local_rank` 0 measures. All hosts have the same metrics in the same order. Therefore all
ranks exchange lists of values without names, and rank 0 logs the metrics of all hosts.

The lists are exchanged together with the other values of a logged step (`Monitor.exchange`), so they need no additional
collective.
"""

import logging
import math
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pynvml

from emocap_pretrain.ranks.group import RankGroup

NAMES = (
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "disk_usage_percentage",
    "disk_available_megabytes",
    "network_receive_megabytes_per_second",
    "network_transmit_megabytes_per_second",
)
GPU_NAMES = (
    "utilization_percentage",
    "memory_usage_megabytes",
    "memory_usage_percentage",
    "power_usage_watts",
)
INTERVAL_S = 15.0  # About so often the metrics of hosts are read, at a logged step.

log = logging.getLogger(__name__)


class HostMetrics:
    """Reads the metrics of this host and of its first `gpus` GPUs, including GPUs that are hidden from this process.

    Args:
        gpus: The largest number of GPUs of any host of the job, so that `names` are the same on all hosts.
        folder: A folder on the disk whose use is measured. In training this is the folder of the cache of shards.
    """

    def __init__(self, *, gpus: int = 0, folder: Path = Path("/")) -> None:
        self.names = NAMES + tuple(f"gpu_{gpu}_{name}" for gpu in range(gpus) for name in GPU_NAMES)
        self._folder = folder
        # NVML lists all GPUs of the host, whatever CUDA_VISIBLE_DEVICES says.
        self._handles = _gpu_handles()[:gpus]
        psutil.cpu_percent()  # The first call returns 0, because it has no earlier call to compare with.
        self._read_at_s, self._traffic = time.monotonic(), _traffic()

    def read(self) -> dict[str, float]:
        """Returns a value for each of `names`.

        If this host has fewer than `gpus` GPUs, the values of the missing GPUs are NaN. Values that a GPU does not
        report are NaN too. The CPU utilization and the network rates are averages since the last call.
        """
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        received, sent = self._network_rates()
        host = (
            psutil.cpu_percent(),
            memory.used / 1e6,
            100 * memory.used / memory.total,
            disk.percent,
            disk.free / 1e6,
            received,
            sent,
        )
        gpus = [value for handle in self._handles for value in _read_gpu(handle)]
        values = [*host, *gpus]
        # A host with fewer GPUs than another one fills up with NaN, so that all hosts send equally many numbers.
        return dict(zip(self.names, values + [math.nan] * (len(self.names) - len(values)), strict=True))

    def _network_rates(self) -> tuple[float, float]:
        """Returns the mean rates of receiving and of sending since the last call, in megabytes per second."""
        # The lower bound avoids a division by 0 if two readings have the same time.
        now_s, traffic = time.monotonic(), _traffic()
        passed_s = max(now_s - self._read_at_s, 1e-3)
        received, sent = ((new - old) / 1e6 / passed_s for new, old in zip(traffic, self._traffic, strict=True))
        self._read_at_s, self._traffic = now_s, traffic
        return received, sent


class JobHostMetrics:
    """Reads the metrics of this host as a list of values, and converts the lists of all ranks to metrics with names.

    The caller exchanges the lists between the ranks: `read` returns the list of this rank, and `named` takes those of
    all ranks. The constructor runs collectives, so all ranks must call it.

    Args:
        world: All ranks of the job.
        folder: A folder on the disk whose use is measured. If a host does not have the folder, it is created.
    """

    def __init__(self, world: RankGroup, folder: Path) -> None:
        self._world, self._next_step = world, 0
        folder.mkdir(parents=True, exist_ok=True)
        names = world.gather(socket.gethostname() if world.info.local_rank == 0 else None)
        self._hosts = dict[int, str]((rank, host) for rank, host in enumerate(names) if host)
        self._metrics = HostMetrics(gpus=world.maximum([gpu_count()])[0], folder=folder)

    def read(self, step: int) -> list[float]:
        """Returns the metrics of this host if about `INTERVAL_S` seconds have passed since they were last read.

        Otherwise the result is an empty list. The number of steps that are done, `step`, is equal on all ranks. So the
        lists of all ranks are equally long, as their exchange requires. Only the rank with `local_rank` 0 reads the
        metrics of its host; the other ranks return as many zeros.
        """
        if step < self._next_step:
            return []
        reads = self._world.rank in self._hosts
        return list(self._metrics.read().values()) if reads else [0.0] * len(self._metrics.names)

    def named(self, table: Sequence[Sequence[float]], step: int, step_s: float) -> dict[str, float]:
        """Returns the metrics of all hosts by their names in MLflow.

        The result is empty at a step at which `read` returned an empty list. All ranks call this method after `read`.

        Args:
            table: The list that each rank's `read` has returned at this step, in the order of the ranks.
            step: The number of steps that are done.
            step_s: The seconds that a step takes. It must be equal on all ranks, because each rank uses it to compute
                the step at which `read` reads the metrics again.
        """
        if step < self._next_step:
            return {}
        # `read` compares with this step, not with a time: clocks differ between ranks, and all must send equally many
        # numbers.
        self._next_step = step + max(1, int(INTERVAL_S / step_s))
        names = self._metrics.names
        return by_host((host, dict(zip(names, table[rank], strict=True))) for rank, host in self._hosts.items())


def by_host(readings: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """Returns the readings of all hosts under the names `system/<host>/<name>`, without values that are NaN.

    `readings` holds, for each host, a pair of the host's name and its metrics by name.
    """
    return {
        f"system/{host}/{name}": value
        for host, reading in readings
        for name, value in reading.items()
        if not math.isnan(value)
    }


def gpu_count() -> int:
    """Returns the number of GPUs of this host, including GPUs that are hidden from this process."""
    return len(_gpu_handles())


def _traffic() -> tuple[int, int]:
    """Returns the numbers of bytes that the host has received and sent since it was booted.

    The loopback interface is not counted.
    """
    counters = psutil.net_io_counters(pernic=True)
    outward = [counter for name, counter in counters.items() if name != "lo"]
    return sum(each.bytes_recv for each in outward), sum(each.bytes_sent for each in outward)


def _gpu_handles() -> list[Any]:
    """Returns NVML's handles of this host's GPUs; an empty list if NVML cannot be used, as on a host without a GPU."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        # A host without the driver's library has no GPU, which needs no warning.
        if error.args != (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,):
            log.warning("the metrics of this host's GPUs are not available: %s", error)
    return []


def _read_gpu(handle: Any) -> list[float]:
    """Returns the values of `GPU_NAMES` for a GPU. A value is NaN if the GPU does not report it.

    A GPU in MIG mode, for example, reports neither its utilization nor the power of a slice.
    """
    reads = (
        lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        lambda: _memory(handle).used / 1e6,
        lambda: 100 * _memory(handle).used / _memory(handle).total,
        lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    )
    values = list[float]()
    for read in reads:
        try:
            values.append(float(read()))
        except pynvml.NVMLError:
            values.append(math.nan)
    return values


def _memory(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(handle)
