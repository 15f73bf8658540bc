"""Exchanges messages between the driver and the ranks of a job, through one small actor on the driver's node.

The ranks report to the actor on which nodes they run, and rank 0 reports its progress. The driver reads these messages
every half second. In the other direction, the driver can request a stop, and a thread of rank 0 waits for this request.

The process of the actor may be lost at any time. Ray then starts an empty actor in its place, so its messages may be
incomplete. Therefore the driver merges the messages that it reads with those that it has read before, and sends a stop
request again and again until the attempt ends.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True, slots=True)
class StepReport:
    """The progress of rank 0: `step` of `steps` steps are done. `note` is a short text for the user."""

    step: int
    steps: int
    note: str


@dataclass(frozen=True, slots=True)
class BoardState:
    """The messages that the ranks of the current attempt have sent.

    Attributes:
        nodes: Ray's id of the node of each rank.
        hosts: The host name of each rank.
        commits: Number of checkpoints that this attempt has committed. The board counts from 0 again after Ray has
            restarted its process; `merged_with` keeps the larger number.
        report: The last report of rank 0.
    """

    nodes: dict[int, str] = field(default_factory=dict[int, str])
    hosts: dict[int, str] = field(default_factory=dict[int, str])
    commits: int = 0
    report: StepReport | None = None

    def merged_with(self, earlier: "BoardState") -> "BoardState":
        """Returns this state, completed by the `earlier` state of the same attempt. The field `report` is not merged.

        This is needed because Ray may restart the board's process. The board has then lost the ranks that registered
        before the restart, and counts the committed checkpoints from 0 again.
        """
        return replace(
            self,
            nodes=earlier.nodes | self.nodes,
            hosts=earlier.hosts | self.hosts,
            commits=max(earlier.commits, self.commits),
        )


class Board:
    """The Ray actor through which the driver and the ranks of a job exchange messages.

    All methods run in one event loop. A waiting rank therefore costs nothing, and no caller sees a state that is only
    partly changed.

    Every rank calls `register` once. Only rank 0 calls `report_step`, `committed` and `stop_requested`, and only the
    driver calls `begin`, `request_stop` and `state`.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._stop = asyncio.Event()
        self._nodes: dict[int, str] = {}
        self._hosts: dict[int, str] = {}
        self._commits = 0
        self._report: StepReport | None = None

    async def begin(self) -> None:
        """Deletes the messages and the stop request of the previous attempt."""
        self._begin()

    async def register(self, rank: int, node: str, host: str) -> None:
        self._nodes[rank], self._hosts[rank] = node, host

    async def report_step(self, report: StepReport) -> None:
        self._report = report

    async def committed(self) -> None:
        self._commits += 1

    async def request_stop(self) -> None:
        self._stop.set()

    async def stop_requested(self) -> bool:
        """Waits until the driver requests that the ranks save and stop, and returns True."""
        return await self._stop.wait()

    async def state(self) -> BoardState:
        return BoardState(dict(self._nodes), dict(self._hosts), self._commits, self._report)


def start_board() -> Any:
    """Starts a board on this node and returns its handle.

    If the process of the actor is lost, Ray starts an empty board in its place. The actor ends with the job.
    """
    # The driver's node is the only place for the board: the loss of this node ends the job in any case, and the job
    # outlives the loss of every other node. The board requests no CPU, so that all CPUs are left for the ranks.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Board).remote()
