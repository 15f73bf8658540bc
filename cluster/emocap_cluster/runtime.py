"""A rank's place under Ray Train; matches the training function's `Runtime` protocol by shape."""

from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
from ray.experimental import tqdm_ray


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
        self._bar: Any = None
        self._shown = 0

    def should_stop(self) -> bool:
        """Never: when Ray loses a rank, the next start goes on from the newest committed checkpoint."""
        return False

    def committed(self, checkpoint: str) -> None:
        """Ray is told nothing: at a start the store's manifests are the truth, not Ray's memory."""

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        """Moves a progress bar in the driver's terminal."""
        self._bar = self._bar or tqdm_ray.tqdm(total=steps, unit="step")
        self._bar.set_description(note)
        self._bar.update(step - self._shown)
        self._shown = step
        if step >= steps:
            self._bar.close()
