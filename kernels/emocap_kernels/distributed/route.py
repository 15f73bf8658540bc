r"""In which order the rows of all ranks reach one of them: a plan, made of rank numbers alone.

Rank r meets its own rows first, then those of r + 1, r + 2, ... of its machine, then whole machines, the next one
first. So at any time every rank sends as much as it receives, to ranks that differ, and the first rows need no
journey at all.

- `gather`: all ranks as one machine. Rows stay for the way back.
- `hierarchical`: between machines a row crosses once, to the rank of equal place there, which passes it on inside; a
  sum of gradients is formed inside and crosses once. With G ranks a machine that is G times less between machines.
- `ring`: as `gather`, one rank at a time; nothing stays, so the rows of three ranks are held at most (own ones, those
  in use, those under way), and rows travel again on the way back.

The gradient of a row takes the same hops backward: whoever received it sends a sum for it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from emocap_kernels.blocks import ceil_div, even_blocks
from emocap_kernels.distributed.ranks import Ranks, Span

Schedule = Literal["auto", "gather", "hierarchical", "ring"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# Rows that are worth a journey of their own; fewer make kernels too short to hide the next journey.
LEAST_ROWS = 4096
# Journeys inside a machine, of `gather` and `hierarchical`.
MOST_LEGS = 4


@dataclass(frozen=True, slots=True)
class Hop:
    """Messages that start together: (the rank at the other end, the rank whose rows they are)."""

    sends: tuple[tuple[int, int], ...]
    receives: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Leg:
    """Rows that arrive together: those of `ranks`, in this order, after one or two hops."""

    ranks: tuple[int, ...]
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """All legs of one rank; every rank has equally many, of equally many hops.

    Attributes:
        legs: The first one is the own rows.
        keeps: Whether rows stay until they were used twice.
    """

    legs: tuple[Leg, ...]
    keeps: bool


def route_of(schedule: Schedule, span: Span, ranks: Ranks) -> Route:
    """The plan of this rank; `auto` is `hierarchical` from two machines on, else `gather`."""
    if schedule == "ring":
        return Route(legs_of(ranks.rank, ranks.size, node=ranks.size, pieces=ranks.size), keeps=False)
    node = ranks.size if schedule == "gather" else ranks.node
    rows = ceil_div(span.total * (node - 1), ranks.size)
    return Route(legs_of(ranks.rank, ranks.size, node=node, pieces=min(MOST_LEGS, rows // LEAST_ROWS)), keeps=True)


def legs_of(rank: int, size: int, *, node: int, pieces: int) -> tuple[Leg, ...]:
    """The legs of `rank` among `size`, `node` of them to a machine; the rows of that come in at most `pieces`."""
    place = rank % node
    base = rank - place
    ahead = [(place + shift) % node for shift in range(1, node)]
    behind = [(place - shift) % node for shift in range(1, node)]
    legs = [Leg((rank,), ())]
    for part in even_blocks(node - 1, ceil_div(node - 1, max(1, pieces))):
        sources = [base + other for other in ahead[part]]
        hop = Hop(
            sends=tuple((base + other, rank) for other in behind[part]),
            receives=tuple((source, source) for source in sources),
        )
        legs.append(Leg(tuple(sources), (hop,)))
    for step in range(1, size // node):
        source, target = (rank + step * node) % size, (rank - step * node) % size
        between = Hop(sends=((target, rank),), receives=((source, source),))
        there = source - place
        inside = Hop(
            sends=tuple((base + other, source) for other in behind),
            receives=tuple((base + other, there + other) for other in ahead),
        )
        hops = (between, inside) if node > 1 else (between,)
        legs.append(Leg(tuple(range(there, there + node)), hops))
    return tuple(legs)
