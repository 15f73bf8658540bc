"""Plans in which order the rows of all ranks are sent to one rank, and by which messages.

Rank r first uses its own rows, for which it needs no message. Then it uses the rows of ranks r + 1, r + 2, ... of its
machine, and then those of other machines, the next machine first. With this order, all ranks send and receive equally
many messages at the same time.

- `gather`: all ranks count as one machine. Received rows are kept for backward.
- `hierarchical`: a row is sent to each other machine once, to the rank whose index within its machine is that of the
  sender. The receiver then sends the row to the other ranks of its machine. In backward, the gradients of a row are
  first summed inside each machine, and then each machine sends one sum. With G ranks on a machine, the traffic between
  machines is G times smaller than with `gather`.
- `ring`: the order is that of `gather`, but the rows of only one rank arrive at a time, and they are not kept. A rank
  holds the rows of at most three ranks (its own, those in use, and those being received), and rows are sent again for
  backward.

Gradients are sent in the opposite direction: a rank that received a row sends the sum of the row's gradients to the
rank from which it received the row.

Decision 11 gives the reasons. The module `columns` carries out a plan. This module does not communicate: a plan follows
from numbers that all ranks know (the rank indices, the machines and the number of rows of the batch), so the plans of
all ranks fit together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from emocap_kernels.blocks import ceil_div, even_blocks
from emocap_kernels.distributed.ranks import Partition, Ranks

Schedule = Literal["auto", "gather", "hierarchical", "ring"]
# Ranks compare their schedules by position in this tuple.
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

# If there are several stages inside a machine, they have at least this many rows on average. Fewer rows would make
# kernels that are too short to hide the transfer of the next stage. A stage has the rows of whole ranks, so a single
# stage can have fewer: 8,192 rows of 3 ranks arrive in two stages, of 1 rank and of 2 ranks.
MIN_STAGE_ROWS = 4096
# Largest number of stages inside a machine, for `gather` and `hierarchical`.
MAX_STAGES = 4


@dataclass(frozen=True, slots=True)
class Hop:
    """Describes messages that start together.

    Each message is a pair: the rank at the other end, and the rank whose rows the message carries. The rows that a rank
    sends need not be its own: inside a machine, ranks forward rows of other machines.
    """

    sends: tuple[tuple[int, int], ...]
    receives: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Describes rows that arrive together at one rank: those of `ranks`, in this order.

    A hop is one step of the rows from rank to rank. The `hops` of a stage follow one after the other. There is none
    for the rank's own rows, and there are one or two for other rows.

    All ranks have equally many stages. A message that one rank sends in hop h of its stage n is received by another
    rank in hop h of that rank's stage n.
    """

    ranks: tuple[int, ...]
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class CommunicationPlan:
    """Holds the stages in which one rank receives the rows of all ranks.

    All ranks have the same number of stages. The stage with the same number has the same number of hops on all ranks.

    Attributes:
        stages: The first stage consists of the rank's own rows.
        keeps_rows: Whether received rows are kept for backward; otherwise they are sent again.
    """

    stages: tuple[Stage, ...]
    keeps_rows: bool


def plan_communication(schedule: Schedule, partition: Partition, ranks: Ranks) -> CommunicationPlan:
    """Returns the plan of this rank. `auto` means `hierarchical` if there are several machines, else `gather`.

    A stage consists of rows that arrive together. The number of stages is equal on all ranks: it follows from the
    number of ranks and, except with `ring`, from the mean number of rows of a rank, not from this rank's own number.
    """
    if schedule == "ring":
        stages = plan_stages(ranks.rank, ranks.size, node=ranks.size, pieces=ranks.size)
        return CommunicationPlan(stages, keeps_rows=False)
    # `ranks.node` is `ranks.size` if there is one machine. Then `hierarchical` is the same plan as `gather`.
    node = ranks.size if schedule == "gather" else ranks.node
    # The rows that a rank receives from its own machine, if all ranks hold equally many.
    rows = ceil_div(partition.total * (node - 1), ranks.size)
    stages = plan_stages(ranks.rank, ranks.size, node=node, pieces=min(MAX_STAGES, rows // MIN_STAGE_ROWS))
    return CommunicationPlan(stages, keeps_rows=True)


def plan_stages(rank: int, size: int, *, node: int, pieces: int) -> tuple[Stage, ...]:
    """Returns the stages of one rank. The rows of a stage arrive together.

    Args:
        rank: Index of the rank.
        size: Number of ranks.
        node: Number of ranks on each machine; a divisor of `size`.
        pieces: Largest number of stages in which the rows of the other ranks of the same machine arrive; values below 1
            count as 1.
    """
    place = rank % node
    base = rank - place
    # If this rank receives from the rank `shift` places after it, it sends to the rank `shift` places before it. So in
    # each hop, every message that is sent is one that its receiver expects.
    next_places = [(place + shift) % node for shift in range(1, node)]
    previous_places = [(place - shift) % node for shift in range(1, node)]
    stages = [Stage((rank,), ())]
    # The rows of the own machine arrive directly from the ranks that hold them.
    for part in even_blocks(node - 1, ceil_div(node - 1, max(1, pieces))):
        sources = [base + other for other in next_places[part]]
        hop = Hop(
            sends=tuple((base + other, rank) for other in previous_places[part]),
            receives=tuple((source, source) for source in sources),
        )
        stages.append(Stage(tuple(sources), (hop,)))
    # The rows of another machine arrive in two hops. First this rank receives those of the rank with the same place on
    # that machine. Then all ranks of this machine exchange what they have received.
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
