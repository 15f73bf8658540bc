"""A job under failures, event by event: what the formulas cannot say of nodes that come back later."""

import heapq
import math
import random
from dataclasses import dataclass, field

from emocap_pretrain.dry_run.failures import FailureModel


@dataclass(frozen=True, slots=True)
class Outcome:
    """The uses of the time of all nodes, as shares that add up to 1.

    Attributes:
        goodput: New work.
        stalled: Saving.
        lost: Work, and saving, that a restart threw away.
        restarting: From a failure, or a decision to grow, to the next step.
        absent: Nodes that were absent while the others continued, or waited for them.
        failures: How many there were.
    """

    goodput: float
    stalled: float
    lost: float
    restarting: float
    absent: float
    failures: int


@dataclass(frozen=True, slots=True)
class Elastic:
    """A failed node comes back after `repair_s`; the job continues without it, with no fewer than `min_nodes`.

    It grows again when a checkpoint counts.
    """

    repair_s: float = 0.0
    min_nodes: int = 1


@dataclass(slots=True)
class _Clock:
    """The time, the nodes that are absent until then, and node-seconds by their use."""

    nodes: int
    now_s: float = 0.0
    away: list[float] = field(default_factory=list[float])
    spent: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("goodput", "stalled", "lost", "restarting", "absent"), 0.0)
    )

    def there(self) -> int:
        while self.away and self.away[0] <= self.now_s:
            heapq.heappop(self.away)
        return self.nodes - len(self.away)

    def spend(self, seconds: float, working: int, what: str) -> None:
        self.spent[what] += seconds * working
        self.spent["absent"] += seconds * (self.nodes - working)

    def wait_for(self, nodes: int) -> int:
        """Waits until at least this many nodes are there; returns their number. None of them fails while it waits."""
        while (there := self.there()) < nodes:
            self.spend(self.away[0] - self.now_s, 0, "goodput")
            self.now_s = self.away[0]
        return there


def simulate(
    trouble: FailureModel, interval_s: float, *, horizon_s: float, seed: int, elastic: Elastic | None = None
) -> Outcome:
    """Simulates a job for at least `horizon_s` seconds of simulated time.

    Without `elastic` a failed node is replaced at once, as the formulas have it. The work of an interval takes all
    nodes `interval_s`, and fewer nodes longer in proportion: the batch stays what it is.
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
    return math.inf if math.isinf(trouble.node_mtbf_s) else draw.expovariate(nodes / trouble.node_mtbf_s)


def _attempt(trouble: FailureModel, interval_s: float, clock: _Clock, nodes: int, until_s: float) -> tuple[float, bool]:
    """Accounts for one attempt; returns when it ends, and whether a failure ended it rather than a growth."""
    works_s = interval_s * trouble.nodes / nodes
    segment_s = works_s + trouble.stall_s
    began_s = clock.now_s + trouble.restart_s
    grows_at = _grows_at(clock, began_s + trouble.commit_s, segment_s)
    ends_at = min(until_s, grows_at)
    # A job grows at a checkpoint that counts, whatever the last bit of a product says.
    counted = max(0, math.floor((ends_at - began_s - trouble.commit_s) / segment_s + 1e-9))
    running_s = max(0.0, ends_at - began_s)
    clock.spend(ends_at - clock.now_s - running_s, nodes, "restarting")
    clock.spend(counted * works_s, nodes, "goodput")
    clock.spend(counted * trouble.stall_s, nodes, "stalled")
    clock.spend(running_s - counted * segment_s, nodes, "lost")
    return ends_at, grows_at > until_s


def _grows_at(clock: _Clock, first_s: float, segment_s: float) -> float:
    """Returns when the first checkpoint after the return of a node is committed; infinity if no node is missing."""
    if not clock.away:
        return math.inf
    return first_s + segment_s * max(1, math.ceil((clock.away[0] - first_s) / segment_s))
