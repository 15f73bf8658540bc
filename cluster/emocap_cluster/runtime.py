"""A rank's place under Ray Train; matches the training function's `Runtime` protocol by shape."""

import math
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

import ray.train
import ray.train.torch

EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """This process among all: `rank` of `world`, `local_rank` of `local_world` on its host."""

    rank: int
    world: int
    local_rank: int
    local_world: int


class RayRuntime:
    """Made inside a Ray Train worker."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.place = Place(
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_rank(),
            context.get_local_world_size(),
        )
        device = ray.train.torch.get_device()
        self.device = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        self._pace = Pace()

    def should_stop(self) -> bool:
        """Never: when Ray loses a rank, the next start goes on from the newest committed checkpoint."""
        return False

    def committed(self, checkpoint: str) -> None:
        """Ray is told nothing: at a start the store's manifests are the truth, not Ray's memory."""

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        """A line in the driver's terminal, at most one in `EVERY_S` seconds; it reads well in a job's log too."""
        line = self._pace.line(step, steps, note, time.monotonic())
        if line:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


@dataclass(slots=True)
class Pace:
    """Turns steps into lines with the time that is left, judged from the first step that was seen."""

    _first: tuple[int, float] | None = None
    _said_s: float = -math.inf

    def line(self, step: int, steps: int, note: str, now_s: float) -> str | None:
        """The line for this step; None if the last one is too fresh and the job goes on."""
        self._first = self._first or (step, now_s)
        if now_s - self._said_s < EVERY_S and step < steps:
            return None
        self._said_s = now_s
        first_step, first_s = self._first
        done = step - first_step
        if not done:
            return f"step {step}/{steps} · {note}"
        left = timedelta(seconds=round((now_s - first_s) / done * (steps - step)))
        return f"step {step}/{steps} · {note} · {str(left).removeprefix('0:').removeprefix('0')} left"
