"""Measures the throughput and the memory of each rank, and computes the metrics of the job from those of all ranks.

Each rank counts with a `RankMeter`. At a logged step, the ranks exchange the values of their meters, in the order of
`RANK_METRICS`. Then every rank calls `job_metrics` with the values of all ranks, so all ranks get equal metrics.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import fmean

import psutil
import torch

from emocap_pretrain.data.batch import Batch
from emocap_pretrain.health.timing import SECTIONS
from emocap_pretrain.run_folder.documents import Straggler

# The first four are counted since the last logged step, and the others are measured at it.
RANK_METRICS: tuple[str, ...] = (
    "seconds",
    "steps",
    "samples",
    "tokens",
    "memory_gib",
    "device_memory_gib",
    "device_utilization",
)


@dataclass(slots=True)
class RankMeter:
    """Counts what one rank trains on, and reads the memory of its process and its device.

    Attributes:
        device: The name of the rank's torch device, such as `cuda:3` or `cpu`.
    """

    device: str
    _since_s: float = field(default_factory=time.perf_counter)
    _samples: int = 0
    _tokens: int = 0
    _steps: int = 0

    def count(self, batch: Batch) -> None:
        """Counts one step, with the rows and the text tokens of its batch."""
        self._samples += batch.rows
        self._tokens += batch.tokens
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Returns the value of each of `RANK_METRICS`, by its name.

        The counts are those since the last call. The memory of the process and the utilization of the device are
        measured now. The memory of the device is the largest that the process has used since its start.
        """
        now_s = time.perf_counter()
        counts = (now_s - self._since_s, float(self._steps), float(self._samples), float(self._tokens))
        memory_gib = psutil.Process().memory_info().rss / 2**30
        self._since_s, self._steps, self._samples, self._tokens = now_s, 0, 0, 0
        return dict(zip(RANK_METRICS, (*counts, memory_gib, *self._read_device()), strict=True))

    def _read_device(self) -> tuple[float, float]:
        """Returns the device's peak memory in GiB and its utilization from 0 to 1.

        Both are 0 on a CPU. Without the package pynvml the utilization is 0.
        """
        if not self.device.startswith("cuda"):
            return 0.0, 0.0
        memory_gib = torch.cuda.max_memory_allocated() / 2**30
        # NVML gives the utilization, which torch reads through the package pynvml.
        return memory_gib, torch.cuda.utilization(self.device) / 100 if find_spec("pynvml") else 0.0


def job_metrics(ranks: Sequence[Mapping[str, float]], straggler: Straggler | None) -> dict[str, float]:
    """Returns the metrics of the job, by the names that the tracker logs.

    Rates are sums over all ranks, and memory is the largest value of any rank. The share of the time in which a rank
    waits for data is a mean over all ranks. For the utilization of the devices there are two metrics: the mean and the
    lowest value. For each section of a step (such as "forward") there are two metrics too: the mean of its time over
    all ranks, and the longest time of any rank.

    Args:
        ranks: The values of `RANK_METRICS` and the seconds of each of `SECTIONS`, for each rank in rank order.
        straggler: The slowest rank; None if there is one rank only.
    """
    # All ranks make the same steps, so the number of steps of rank 0 is that of the job. It is 0 before the first one.
    seconds = max(each["seconds"] for each in ranks)
    step_s = seconds / max(1.0, ranks[0]["steps"])
    row = {
        "samples_per_s": sum(each["samples"] for each in ranks) / seconds,
        "text_tokens_per_s": sum(each["tokens"] for each in ranks) / seconds,
        "data_wait_share": fmean(each["data"] for each in ranks) / step_s,
        "memory_gib": max(each["memory_gib"] for each in ranks),
        "time/step_s": step_s,
    }
    for name in SECTIONS:
        row[f"time/{name}_s"] = fmean(each[name] for each in ranks)
        row[f"time/{name}_s_slowest"] = max(each[name] for each in ranks)
    if any(each["device_memory_gib"] for each in ranks):
        row["device_memory_gib"] = max(each["device_memory_gib"] for each in ranks)
        row["device_utilization"] = fmean(each["device_utilization"] for each in ranks)
        row["device_utilization_lowest"] = min(each["device_utilization"] for each in ranks)
    if straggler:
        row |= {"straggler_rank": float(straggler.rank), "straggler_factor": straggler.factor}
    return row
