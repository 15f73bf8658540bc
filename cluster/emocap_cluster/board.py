"""Where the driver and the ranks of a job leave word for each other: one small actor on the driver's node."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True, slots=True)
class Beat:
    """Where rank 0 is: at `step` of `steps`; `note` is a few words for a person."""

    step: int
    steps: int
    note: str


@dataclass(frozen=True, slots=True)
class News:
    """What the ranks of this attempt have said: the node and host of each, checkpoints committed, the last beat."""

    nodes: dict[int, str] = field(default_factory=dict[int, str])
    hosts: dict[int, str] = field(default_factory=dict[int, str])
    commits: int = 0
    beat: Beat | None = None

    def after(self, earlier: "News") -> "News":
        """With what was known earlier of ranks that a board which came back empty has not heard of."""
        return replace(self, nodes=earlier.nodes | self.nodes, hosts=earlier.hosts | self.hosts)


class Board:
    """All methods run in one event loop, so that a waiting rank costs nothing and no state is seen half changed."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._stop = asyncio.Event()
        self._nodes: dict[int, str] = {}
        self._hosts: dict[int, str] = {}
        self._commits = 0
        self._beat: Beat | None = None

    async def begin(self) -> None:
        """Forget the attempt before."""
        self._begin()

    async def here(self, rank: int, node: str, host: str) -> None:
        self._nodes[rank], self._hosts[rank] = node, host

    async def beat(self, beat: Beat) -> None:
        self._beat = beat

    async def committed(self) -> None:
        self._commits += 1

    async def ask_to_stop(self) -> None:
        self._stop.set()

    async def stop_asked(self) -> bool:
        """Answers once the ranks are to save and stop."""
        return await self._stop.wait()

    async def news(self) -> News:
        return News(dict(self._nodes), dict(self._hosts), self._commits, self._beat)


def put_up() -> Any:
    """A board's handle; the actor comes back empty if its process is lost, and goes with the job."""
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Board).remote()
