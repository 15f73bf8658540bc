"""Simulates a job under failures, event by event.

Unlike the formulas of `dry_run.failures`, the simulation covers failed nodes that come back after a repair.
docs/cluster-benchmarks.md describes the model of failures and compares the simulation with the formula.
"""

import heapq
import math
import random
from dataclasses import dataclass, field

from emocap_pretrain.dry_run.failures import FailureModel


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a simulation: how the nodes of a job spent their time, and the number of failures.

    All attributes but `failures` are shares of the total time of all nodes, and add up to 1. An attempt is one start of
    the job, and lasts until the job fails or is restarted.

    Attributes:
        goodput: Time of work that a committed checkpoint contains.
        stalled: Time in which training paused for a save whose checkpoint was committed later.
        lost: Time of work and of pauses for saves after the last committed checkpoint of an attempt.
        restarting: Time from the beginning of an attempt to its first step.
        absent: Time in which a node was absent or had no work. A node has no work while too few nodes are present, and
            after its return until the next attempt begins.
        failures: The number of failures.
    """

    goodput: float
    stalled: float
    lost: float
    restarting: float
    absent: float
    failures: int


@dataclass(frozen=True, slots=True)
class Elastic:
    """Describes a job that continues with fewer nodes after a failure, but with at least `min_nodes`.

    A failed node comes back after `repair_s` seconds. The job is then restarted after the next committed checkpoint,
    and uses this node again.
    """

    repair_s: float = 0.0
    min_nodes: int = 1


@dataclass(slots=True)
class _Clock:
    """The simulated time, and the time that nodes have spent so far, in node-seconds.

    Attributes:
        nodes: The number of all nodes.
        now_s: The simulated time.
        away: A heap of the times at which absent nodes come back.
        spent: The node-seconds that belong to each share of `Outcome`.
    """

    nodes: int
    now_s: float = 0.0
    away: list[float] = field(default_factory=list[float])
    spent: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("goodput", "stalled", "lost", "restarting", "absent"), 0.0)
    )

    def there(self) -> int:
        """Returns the number of nodes that are present now."""
        while self.away and self.away[0] <= self.now_s:
            heapq.heappop(self.away)
        return self.nodes - len(self.away)

    def spend(self, seconds: float, working: int, what: str) -> None:
        """Adds `seconds` for each of `working` nodes to `spent[what]`, and for each other node to `spent["absent"]`."""
        self.spent[what] += seconds * working
        self.spent["absent"] += seconds * (self.nodes - working)

    def wait_for(self, nodes: int) -> int:
        """Waits until at least this many nodes are present, and returns their number. No node fails meanwhile."""
        while (there := self.there()) < nodes:
            self.spend(self.away[0] - self.now_s, 0, "goodput")
            self.now_s = self.away[0]
        return there


def simulate(
    trouble: FailureModel, interval_s: float, *, horizon_s: float, seed: int, elastic: Elastic | None = None
) -> Outcome:
    """Simulates a job for at least `horizon_s` seconds of simulated time.

    `trouble` describes the failures, and the times of saves and restarts. Without `elastic` a failed node is replaced
    at once, as the formulas of `dry_run.failures` assume. `interval_s` is the time that the
    work between two saves takes while all nodes are present. With half of the nodes, the same work takes twice as long,
    because the global batch stays the same.
    """
    about, draw, clock, failures = elastic or Elastic(), random.Random(seed), _Clock(trouble.nodes), 0
    while clock.now_s < horizon_s:
        nodes = clock.wait_for(about.min_nodes)
        if clock.now_s >= horizon_s:
            break
        fails_at = clock.now_s + _until_failure(trouble, nodes, draw)
        ends_at, failed = _attempt(trouble, interval_s, clock, nodes, min(fails_at, horizon_s))
        clock.now_s = ends_at
        if failed and ends_at == fails_at:
            failures += 1
            if about.repair_s:
                heapq.heappush(clock.away, ends_at + about.repair_s)
    total = sum(clock.spent.values())
    return Outcome(**{name: spent / total for name, spent in clock.spent.items()}, failures=failures)


def _until_failure(trouble: FailureModel, nodes: int, draw: random.Random) -> float:
    """Draws the seconds until one of `nodes` nodes fails."""
    return math.inf if math.isinf(trouble.node_mtbf_s) else draw.expovariate(nodes / trouble.node_mtbf_s)


def _attempt(trouble: FailureModel, interval_s: float, clock: _Clock, nodes: int, until_s: float) -> tuple[float, bool]:
    """Simulates one attempt on `nodes` nodes, and adds its node-seconds to `clock.spent`.

    The attempt ends at `until_s`, or earlier if a node has come back: the job then ends the attempt at a checkpoint, to
    continue with more nodes.

    Returns:
        The time at which the attempt ended; and False if it ended in order to continue with more nodes, otherwise True.
    """
    works_s = interval_s * trouble.nodes / nodes
    segment_s = works_s + trouble.stall_s
    began_s = clock.now_s + trouble.restart_s
    grows_at = _grows_at(clock, began_s + trouble.commit_s, segment_s)
    ends_at = min(until_s, grows_at)
    # The small addend keeps the checkpoint at which the job grows, which rounding could otherwise drop.
    counted = max(0, math.floor((ends_at - began_s - trouble.commit_s) / segment_s + 1e-9))
    running_s = max(0.0, ends_at - began_s)
    clock.spend(ends_at - clock.now_s - running_s, nodes, "restarting")
    clock.spend(counted * works_s, nodes, "goodput")
    clock.spend(counted * trouble.stall_s, nodes, "stalled")
    clock.spend(running_s - counted * segment_s, nodes, "lost")
    return ends_at, grows_at > until_s


def _grows_at(clock: _Clock, first_s: float, segment_s: float) -> float:
    """Returns when the first checkpoint after the return of a node is committed; infinity if no node is missing.

    The checkpoints of the attempt are committed at `first_s + k * segment_s` for k = 1, 2, 3 and so on.
    """
    if not clock.away:
        return math.inf
    return first_s + segment_s * max(1, math.ceil((clock.away[0] - first_s) / segment_s))
