r"""The order in which the rows of all ranks reach one rank. It is computed from rank numbers alone.

Rank r first uses its own rows, then those of r + 1, r + 2, ... on its machine, then those of whole machines, the next
one first. Therefore every rank sends as much as it receives at any time, to ranks that differ, and the first rows need
no message at all.

- `gather`: all ranks count as one machine. Rows are kept for backward.
- `hierarchical`: a row is sent between machines once, to the rank at the same place there, which sends it on inside
  the machine. A sum of gradients is formed inside a machine and is sent between machines once. With G ranks on a
  machine, that is G times less traffic between machines.
- `ring`: as `gather`, but one rank at a time, and nothing is kept. A rank holds the rows of at most three ranks (its
  own, those in use, and those being received), and rows are sent again for backward.

The gradient of a row takes the same hops in reverse: a rank that received a row sends a sum for it to the rank from
which the row came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from emocap_kernels.blocks import ceil_div, even_blocks
from emocap_kernels.distributed.ranks import Partition, Ranks

Schedule = Literal["auto", "gather", "hierarchical", "ring"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# Fewer rows in a stage would make kernels that are too short to hide the transfer of the next stage.
MIN_STAGE_ROWS = 4096
# Largest number of stages inside a machine, for `gather` and `hierarchical`.
MAX_STAGES = 4


@dataclass(frozen=True, slots=True)
class Hop:
    """Messages that start together, each as (the rank at the other end, the rank whose rows it carries)."""

    sends: tuple[tuple[int, int], ...]
    receives: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Rows that arrive together: those of `ranks`, in this order, after the given hops (none, one or two)."""

    ranks: tuple[int, ...]
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class CommunicationPlan:
    """All stages of one rank. Every rank has equally many, with equally many hops.

    Attributes:
        stages: The first one is the rank's own rows.
        keeps_rows: Whether received rows are kept for backward; otherwise they are sent again.
    """

    stages: tuple[Stage, ...]
    keeps_rows: bool


def plan_communication(schedule: Schedule, partition: Partition, ranks: Ranks) -> CommunicationPlan:
    """Returns the plan of this rank. `auto` is `hierarchical` from two machines on, else `gather`."""
    if schedule == "ring":
        stages = plan_stages(ranks.rank, ranks.size, node=ranks.size, pieces=ranks.size)
        return CommunicationPlan(stages, keeps_rows=False)
    node = ranks.size if schedule == "gather" else ranks.node
    rows = ceil_div(partition.total * (node - 1), ranks.size)
    stages = plan_stages(ranks.rank, ranks.size, node=node, pieces=min(MAX_STAGES, rows // MIN_STAGE_ROWS))
    return CommunicationPlan(stages, keeps_rows=True)


def plan_stages(rank: int, size: int, *, node: int, pieces: int) -> tuple[Stage, ...]:
    """Returns the stages of one rank.

    Args:
        rank: The rank.
        size: Number of ranks.
        node: Number of ranks on each machine; a divisor of `size`.
        pieces: The rows of the rank's own machine arrive in at most this many stages (at least one).
    """
    place = rank % node
    base = rank - place
    next_places = [(place + shift) % node for shift in range(1, node)]
    previous_places = [(place - shift) % node for shift in range(1, node)]
    stages = [Stage((rank,), ())]
    for part in even_blocks(node - 1, ceil_div(node - 1, max(1, pieces))):
        sources = [base + other for other in next_places[part]]
        hop = Hop(
            sends=tuple((base + other, rank) for other in previous_places[part]),
            receives=tuple((source, source) for source in sources),
        )
        stages.append(Stage(tuple(sources), (hop,)))
    for step in range(1, size // node):
        source, target = (rank + step * node) % size, (rank - step * node) % size
        between = Hop(sends=((target, rank),), receives=((source, source),))
        source_base = source - place
        inside = Hop(
            sends=tuple((base + other, source) for other in previous_places),
            receives=tuple((base + other, source_base + other) for other in next_places),
        )
        hops = (between, inside) if node > 1 else (between,)
        stages.append(Stage(tuple(range(source_base, source_base + node)), hops))
    return tuple(stages)
