"""Speed and memory between two readings."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

import psutil
import torch

from emocap_pretrain.batch import Batch
from emocap_pretrain.world import World

OWN = ("seconds", "steps", "samples", "tokens", "memory_gib", "device_memory_gib", "device_utilization")


@dataclass(slots=True)
class Meter:
    """Counts this rank's rows; rates are of the whole job, other ranks taken to be like this one."""

    world: World
    _since: float = field(default_factory=time.perf_counter)
    _waited_s: float = 0.0
    _samples: int = 0
    _tokens: int = 0
    _steps: int = 0

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Time in here is time without data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def count(self, batch: Batch) -> None:
        self._samples += batch.rows
        self._tokens += batch.tokens
        self._steps += 1

    def own(self) -> dict[str, float]:
        """What this rank did since the last reading, and its memory now; the keys are `OWN` in this order."""
        values = (
            time.perf_counter() - self._since,
            float(self._steps),
            float(self._samples),
            float(self._tokens),
            psutil.Process().memory_info().rss / 2**30,
            *self._of_device(),
        )
        self._since, self._steps, self._samples, self._tokens = time.perf_counter(), 0, 0, 0
        return dict(zip(OWN, values, strict=True))

    def _of_device(self) -> tuple[float, float]:
        """Peak memory in GiB and utilisation as a share; 0 without a GPU, or where nobody can tell."""
        device = self.world.device
        if not device.startswith("cuda"):
            return 0.0, 0.0
        memory_gib = torch.cuda.max_memory_allocated() / 2**30
        return memory_gib, torch.cuda.utilization(device) / 100 if find_spec("pynvml") else 0.0

    def read(self) -> dict[str, float]:
        """Rates since the last reading, and memory now."""
        seconds = time.perf_counter() - self._since
        ranks = self.world.place.world
        row = {
            "samples_per_s": ranks * self._samples / seconds,
            "text_tokens_per_s": ranks * self._tokens / seconds,
            "data_wait_share": self._waited_s / seconds,
            "memory_gib": psutil.Process().memory_info().rss / 2**30,
        }
        if self.world.device.startswith("cuda"):
            row["device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._since, self._waited_s, self._samples, self._tokens = time.perf_counter(), 0.0, 0, 0
        return row
