"""What this rank did between two readings, and its memory."""

import time
from dataclasses import dataclass, field
from importlib.util import find_spec

import psutil
import torch

from emocap_pretrain.data.batch import Batch

OWN = ("seconds", "steps", "samples", "tokens", "memory_gib", "device_memory_gib", "device_utilization")


@dataclass(slots=True)
class Meter:
    """Counts the rows of one rank on `device`."""

    device: str
    _since: float = field(default_factory=time.perf_counter)
    _samples: int = 0
    _tokens: int = 0
    _steps: int = 0

    def count(self, batch: Batch) -> None:
        self._samples += batch.rows
        self._tokens += batch.tokens
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Counts since the last reading, and memory now; the keys are `OWN` in this order."""
        now = time.perf_counter()
        counts = (now - self._since, float(self._steps), float(self._samples), float(self._tokens))
        memory_gib = psutil.Process().memory_info().rss / 2**30
        self._since, self._steps, self._samples, self._tokens = now, 0, 0, 0
        return dict(zip(OWN, (*counts, memory_gib, *self._of_device()), strict=True))

    def _of_device(self) -> tuple[float, float]:
        """Peak memory in GiB and utilisation as a share; 0 without a GPU, or where nobody can tell."""
        if not self.device.startswith("cuda"):
            return 0.0, 0.0
        memory_gib = torch.cuda.max_memory_allocated() / 2**30
        return memory_gib, torch.cuda.utilization(self.device) / 100 if find_spec("pynvml") else 0.0
