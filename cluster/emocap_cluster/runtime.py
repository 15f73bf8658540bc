"""A rank's place under Ray Train; matches the training function's `Runtime` protocol by shape."""

import math
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError

from emocap_cluster.board import Beat

SHORTEST_BEAT_S = 0.5
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """This process among all: `rank` of `world`, `local_rank` of `local_world` on its host."""

    rank: int
    world: int
    local_rank: int
    local_world: int


class RayRuntime:
    """Made inside a Ray Train worker.

    Rank 0 alone listens to the driver and speaks of progress: the training loop takes the word of one rank for all.

    Args:
        board: Handle of the job's `Board`.
    """

    def __init__(self, board: Any) -> None:
        context = ray.train.get_context()
        self.place = Place(
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_rank(),
            context.get_local_world_size(),
        )
        device = ray.train.torch.get_device()
        self.device = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        self._board = board
        self._stop = threading.Event()
        self._beat_s = -math.inf
        board.here.remote(self.place.rank, ray.get_runtime_context().get_node_id(), socket.gethostname())
        if self.place.rank == 0:
            threading.Thread(target=self._listen, name="stop-listener", daemon=True).start()

    def should_stop(self) -> bool:
        """Whether the driver asked: it was told to end, a node is about to go, or there is room for more ranks."""
        return self._stop.is_set()

    def committed(self, checkpoint: str) -> None:  # noqa: ARG002
        """Tells the driver that this is a good time to grow.

        Ray Train itself is told nothing: its `report` holds all ranks for up to 2 s, and at a start the manifests in
        the store are the truth, not Ray's memory.
        """
        if self.place.rank == 0:
            self._board.committed.remote()

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        now_s = time.monotonic()
        if now_s - self._beat_s >= SHORTEST_BEAT_S or step >= steps:
            self._beat_s = now_s
            self._board.beat.remote(Beat(step, steps, note))

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                if ray.get(self._board.stop_asked.remote()):
                    self._stop.set()
            except RayActorError:  # The board's process is lost and comes back; until then nobody can ask.
                time.sleep(RETRY_S)
