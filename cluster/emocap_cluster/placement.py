"""Computes how many ranks a job has on the existing nodes, and which share of a device each rank holds.

This module does not use Ray.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RANKS_WITHOUT_GPU = 2  # The fewest ranks of a job that requests no number of ranks.


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the cluster. A `draining` node will be removed soon and takes no new work."""

    id: str
    address: str
    cpus: int
    gpus: int
    alive: bool = True
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """The resources that a job requests.

    Args:
        ranks: Number of ranks. None means one rank for each GPU if `on_gpu` is true. Otherwise it means one rank for
            each node that has a CPU, and at least two ranks in total.
        least: Fewest ranks with which the job continues.
        most: Largest number of ranks that the job can use: one for each sample of a global batch.
        on_gpu: Whether each rank holds one GPU. Otherwise each rank holds one CPU, or a fraction of a CPU if there are
            more ranks than CPUs.
        spread: Distributes ranks over the nodes in turn, instead of filling one node after the other.
    """

    ranks: int | None
    least: int
    most: int
    on_gpu: bool
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of ranks of an attempt, and the resources of each: one GPU if `on_gpu` is true, and otherwise the
    fraction `share` of a CPU. `strategy` says whether Ray fills node after node or spreads the ranks over the nodes.
    """

    ranks: int
    on_gpu: bool
    share: float
    strategy: Literal["PACK", "SPREAD"]

    @property
    def held(self) -> dict[str, float]:
        """The Ray resources that one rank holds."""
        return {"GPU": 1.0} if self.on_gpu else {"CPU": self.share}


def place(nodes: Sequence[Node], request: ResourceRequest) -> Placement:
    """Returns a placement with as many of the requested ranks as fit; `ranks` is 0 if there is no suitable device at
    all.

    Nodes that are dead or draining count as absent. The result may have fewer than `request.least` ranks; the caller
    decides whether to wait for more devices.

    Example:
        ```python
        nodes = [Node("a", "10.0.0.1", cpus=64, gpus=8), Node("b", "10.0.0.2", cpus=64, gpus=4)]
        place(nodes, ResourceRequest(ranks=None, least=1, most=4096, on_gpu=True)).ranks  # 12
        ```
    """
    there = [node for node in nodes if node.alive and not node.draining]
    ranks = min(request.most, _room(there, request))
    # Without GPUs and without a requested number, ranks are distributed evenly over the nodes: two ranks on one node
    # would each run at half speed.
    spread = request.spread or (request.ranks is None and not request.on_gpu)
    return Placement(ranks, request.on_gpu, _share(there, ranks), "SPREAD" if spread else "PACK")


def _room(there: Sequence[Node], request: ResourceRequest) -> int:
    """Returns how many of the requested ranks fit on the nodes `there`, which are alive and not draining.

    Each rank needs a GPU of its own, but any number of ranks can share a CPU.
    """
    if request.on_gpu:
        gpus = sum(node.gpus for node in there)
        return gpus if request.ranks is None else min(request.ranks, gpus)
    hosts = sum(node.cpus > 0 for node in there)
    if not hosts:
        return 0
    return max(hosts, RANKS_WITHOUT_GPU) if request.ranks is None else request.ranks


def _share(there: Sequence[Node], ranks: int) -> float:
    """Returns the share of a CPU that each of `ranks` ranks on the nodes `there` holds; 0 if there is no CPU.

    It is the largest share 1 / k, with an integer k, with which all ranks fit. It is rounded down to four decimals, the
    precision of Ray.
    """
    cpus = [node.cpus for node in there if node.cpus]
    if not cpus:
        return 0.0
    parts = max(1, math.ceil(ranks / sum(cpus)))
    # If the share were rounded up, the shares of the `parts` ranks on a CPU would together exceed it.
    return math.floor(10_000 / parts) / 10_000
