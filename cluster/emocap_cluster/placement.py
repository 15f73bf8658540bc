"""How many ranks a job has on the nodes that there are, and what each of them holds. Arithmetic, no Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RANKS_WITHOUT_GPU = 2


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster. A `draining` one is about to go and takes no new work."""

    id: str
    address: str
    cpus: int
    gpus: int
    alive: bool = True
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What the job would like.

    Args:
        ranks: How many; None is all that the nodes have room for.
        least: Fewest to go on with.
        most: No use for more; the samples of a batch.
        on_gpu: Whether each rank holds one GPU; else it holds up to one CPU.
        spread: Take turns between nodes instead of filling node after node.
    """

    ranks: int | None
    least: int
    most: int
    on_gpu: bool
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """The ranks of one attempt; each holds `share` of a CPU, or one GPU where `on_gpu`."""

    ranks: int
    on_gpu: bool
    share: float
    strategy: Literal["PACK", "SPREAD"]

    @property
    def held(self) -> dict[str, float]:
        return {"GPU": 1.0} if self.on_gpu else {"CPU": self.share}


def usable(nodes: Sequence[Node]) -> list[Node]:
    """Nodes that take new ranks."""
    return [node for node in nodes if node.alive and not node.draining]


def place(nodes: Sequence[Node], wish: Wish) -> Placement:
    """As many ranks as are wished for and fit; `ranks` is 0 where there is no device at all."""
    there = usable(nodes)
    ranks = min(wish.most, _room(there, wish) if wish.ranks is None else _fitting(there, wish, wish.ranks))
    # Without GPUs the ranks that are not counted out share the nodes evenly: two on one node would halve each other.
    spread = wish.spread or (wish.ranks is None and not wish.on_gpu)
    return Placement(ranks, wish.on_gpu, _share(there, ranks), "SPREAD" if spread else "PACK")


def _room(there: Sequence[Node], wish: Wish) -> int:
    if wish.on_gpu:
        return sum(node.gpus for node in there)
    hosts = sum(node.cpus > 0 for node in there)
    return max(hosts, RANKS_WITHOUT_GPU) if hosts else 0


def _fitting(there: Sequence[Node], wish: Wish, ranks: int) -> int:
    """GPUs are not shared; CPUs are, by any number of ranks."""
    if wish.on_gpu:
        return min(ranks, sum(node.gpus for node in there))
    return ranks if any(node.cpus for node in there) else 0


def _share(there: Sequence[Node], ranks: int) -> float:
    """The largest 1/k of a CPU that so many ranks can hold; rounded down to what Ray tells apart."""
    cpus = [node.cpus for node in there if node.cpus]
    if not cpus:
        return 0.0
    parts = max(1, math.ceil(ranks / sum(cpus)))
    return math.floor(10_000 / parts) / 10_000
