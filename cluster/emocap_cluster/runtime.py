"""Tells a rank under Ray Train its rank number and its device, and connects it to the driver."""

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

from emocap_cluster.board import StepReport

SHORTEST_REPORT_S = 0.5
RETRY_S = 1.0  # Pause while Ray restarts the process of the board.


@dataclass(frozen=True, slots=True)
class RayRankInfo:
    """The number of this process among all ranks (`rank` of `world_size`), and among the ranks of its host
    (`local_rank` of `local_world_size`).
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


class RayRuntime:
    """The runtime of a rank, to be constructed in a Ray Train worker. It implements the training code's protocol
    `Runtime`.

    Only rank 0 receives stop requests from the driver and reports progress. The training loop passes the requests on to
    the other ranks, by an all-reduce (decision 15). Only a background thread waits for answers of `board`, so a lost
    or slow board does not delay training.

    Args:
        board: Handle of the job's `Board`, the Ray actor through which the driver and the ranks exchange messages.
    """

    def __init__(self, board: Any) -> None:
        context = ray.train.get_context()
        self.rank_info = RayRankInfo(
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_rank(),
            context.get_local_world_size(),
        )
        device = ray.train.torch.get_device()
        self.device = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        self._board = board
        self._stop = threading.Event()
        self._reported_s = -math.inf
        # Nobody waits for the result of this call. Only `_listen` waits for the board, in a thread of its own.
        board.register.remote(self.rank_info.rank, ray.get_runtime_context().get_node_id(), socket.gethostname())
        if self.rank_info.rank == 0:
            threading.Thread(target=self._listen, name="stop-listener", daemon=True).start()

    def should_stop(self) -> bool:
        """Returns whether the driver has requested a stop.

        The driver requests it if the user asks for a stop, if a node will be removed soon, or if there are free devices
        for more ranks.
        """
        return self._stop.is_set()

    def committed(self, checkpoint: str) -> None:  # noqa: ARG002
        """Tells the driver that a checkpoint is committed.

        From then on, the driver may start the job again with more ranks, if there are free devices. Ray Train's own
        `report` is not used, because it blocks all ranks for up to 2 s. Ray need not know the checkpoints, because an
        attempt finds the newest one through the manifests in the store.
        """
        if self.rank_info.rank == 0:
            self._board.committed.remote()

    def heartbeat(self, step: int, steps: int, note: str) -> None:
        """Reports progress to the driver, at most twice a second. The report of the last step is always sent."""
        now_s = time.monotonic()
        if now_s - self._reported_s >= SHORTEST_REPORT_S or step >= steps:
            self._reported_s = now_s
            self._board.report_step.remote(StepReport(step, steps, note))

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                # This blocks until the driver requests a stop, so the request arrives without polling.
                if ray.get(self._board.stop_requested.remote()):
                    self._stop.set()
            except RayActorError:  # Ray restarts the board's process; until then there can be no request.
                time.sleep(RETRY_S)
