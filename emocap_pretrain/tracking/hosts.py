"""Measures how busy a host is, under the names of MLflow's system metrics.

One rank of each host (`local_rank` 0) reads; the names are the same on every host, so that readings can be gathered as
plain vectors, and rank 0 alone writes them down.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pynvml

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

log = logging.getLogger(__name__)


class HostMetrics:
    """This host, its disk at `folder`, and its first `gpus` GPUs, whichever of them this process may use.

    Args:
        gpus: Over all hosts the greatest number of GPUs of one, so that all of them have the same names.
        folder: On the disk that may fill up: the cache of shards.
    """

    def __init__(self, *, gpus: int = 0, folder: Path = Path("/")) -> None:
        self.names = NAMES + tuple(f"gpu_{gpu}_{name}" for gpu in range(gpus) for name in GPU_NAMES)
        self._folder = folder
        self._handles = _handles()[:gpus]
        psutil.cpu_percent()  # The first call has nothing to compare with.
        self._at, self._traffic = time.monotonic(), _traffic()

    def read(self) -> dict[str, float]:
        """A value for each of `names`, NaN where there is none; use and rates since the last reading."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        received, sent = self._rates()
        host = (
            psutil.cpu_percent(),
            memory.used / 1e6,
            100 * memory.used / memory.total,
            disk.percent,
            disk.free / 1e6,
            received,
            sent,
        )
        gpus = [value for handle in self._handles for value in _gpu(handle)]
        values = [*host, *gpus]
        return dict(zip(self.names, values + [math.nan] * (len(self.names) - len(values)), strict=True))

    def _rates(self) -> tuple[float, float]:
        """Megabytes a second, received and sent."""
        now, traffic = time.monotonic(), _traffic()
        passed_s = max(now - self._at, 1e-3)
        received, sent = ((new - old) / 1e6 / passed_s for new, old in zip(traffic, self._traffic, strict=True))
        self._at, self._traffic = now, traffic
        return received, sent


def by_host(readings: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """`system/<host>/<name>` for the readings of all hosts, without what a host does not have."""
    return {
        f"system/{host}/{name}": value
        for host, reading in readings
        for name, value in reading.items()
        if not math.isnan(value)
    }


def gpu_count() -> int:
    """GPUs of this host, whichever of them this process may use."""
    return len(_handles())


def _traffic() -> tuple[int, int]:
    """Bytes received and sent since the host started, without what it tells itself."""
    counters = psutil.net_io_counters(pernic=True)
    outward = [counter for name, counter in counters.items() if name != "lo"]
    return sum(each.bytes_recv for each in outward), sum(each.bytes_sent for each in outward)


def _handles() -> list[Any]:
    """NVML's GPUs; none where there is no driver."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        if error.args != (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,):
            log.warning("no metrics of this host's GPUs: %s", error)
    return []


def _gpu(handle: Any) -> list[float]:
    """Values of `GPU_NAMES`; NaN for what this kind of GPU does not tell (a slice of one has no use or power)."""
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
