"""Speed and memory between two readings."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch

from emocap_pretrain.batch import Batch
from emocap_pretrain.world import World


@dataclass(slots=True)
class Meter:
    """Counts this rank's rows; rates are of the whole job, other ranks taken to be like this one."""

    world: World
    _since: float = field(default_factory=time.perf_counter)
    _waited_s: float = 0.0
    _samples: int = 0
    _tokens: int = 0

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Time in here is time without data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def count(self, batch: Batch) -> None:
        self._samples += batch.rows
        self._tokens += batch.tokens

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
