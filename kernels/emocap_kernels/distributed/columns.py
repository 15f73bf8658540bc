"""The rows of all ranks, block by block as they arrive, and sums for them on their way home.

Every rank scores its own images against the texts of all, so only the texts travel (with what else mining reads of a
column). While one block is computed with, the next one is under way; on a GPU nothing here waits on the host. The
messages and their order follow from the route and the row counts, never from what is in a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from emocap_kernels.distributed.collectives import post
from emocap_kernels.distributed.ranks import ALONE, Ranks, Span
from emocap_kernels.distributed.route import Leg, Schedule, route_of


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring rows of the batch.

    Attributes:
        columns: Their global indices.
        vectors: Each tensor of the `Columns`, [rows, ...] in its own type.
    """

    columns: slice
    vectors: tuple[Tensor, ...]


class Columns:
    """Tensors that all ranks hold rows of. No gradient passes through here: `Sums` carries it."""

    def __init__(self, local: Sequence[Tensor], span: Span, ranks: Ranks, schedule: Schedule = "auto") -> None:
        self.span, self.ranks = span, ranks
        self.route = route_of(schedule, span, ranks)
        self._local = tuple(each if ranks.size == 1 else each.detach().contiguous() for each in local)
        self._kept: list[list[Block]] | None = None

    @staticmethod
    def alone(local: Sequence[Tensor]) -> Columns:
        """Of one rank that holds all rows."""
        return Columns(local, Span((len(local[0]),), 0), ALONE)

    def blocks(self, sums: Sums | None = None) -> Iterator[Block]:
        """Every row once, own rows first; the same blocks in the same order whenever it is called.

        Args:
            sums: Takes a part for each block before the next one is asked for; sent off as soon as its leg is through.
        """
        arriving = self._arriving() if self._kept is None else iter(self._kept)
        seen: list[list[Block]] = []
        for leg, blocks in zip(self.route.legs, arriving, strict=True):
            yield from blocks
            if sums is not None:
                sums.send_off(leg)
            if self.route.keeps:
                seen.append(blocks)
        self._kept = seen if self.route.keeps else None

    def put_away(self) -> tuple[Columns, tuple[Tensor, ...]]:
        """The same without its tensors, and all that it holds, for autograd to keep until the way back."""
        kept = self._kept if self.ranks.size > 1 else None
        blocks = [block for leg in kept or [] for block in leg]
        empty = copy(self)
        empty._local = ()
        empty._kept = None if kept is None else [[Block(block.columns, ()) for block in leg] for leg in kept]
        return empty, (*self._local, *(each for block in blocks for each in block.vectors))

    def taken_out(self, tensors: Sequence[Tensor]) -> Columns:
        """What `put_away` left, with its tensors."""
        legs = self._kept or []
        number = len(tensors) // (1 + sum(len(leg) for leg in legs))
        held = iter([tuple(tensors[first : first + number]) for first in range(0, len(tensors), number)])
        full = copy(self)
        full._local = next(held)
        full._kept = None if self._kept is None else [[replace(b, vectors=next(held)) for b in leg] for leg in legs]
        return full

    def whole(self) -> tuple[Tensor, ...]:
        """All rows in the order of their global index, [total, ...]."""
        blocks = sorted(self.blocks(), key=lambda block: block.columns.start)
        if len(blocks) == 1:
            return blocks[0].vectors
        return tuple(torch.cat(parts) for parts in zip(*[block.vectors for block in blocks], strict=True))

    def _arriving(self) -> Iterator[list[Block]]:
        """The blocks of each leg; a leg sets out when the one before it, or two before it, is computed with."""
        trips = [_Trip(self._local, leg, self.span, self.ranks) for leg in self.route.legs]
        while trips:
            trip = trips.pop(0)
            trip.end_hop()
            for to_go, later in enumerate(trips[:2], start=1):
                later.start_hop(to_go)
            yield trip.blocks()


class _Trip:
    """One leg under way to this rank."""

    def __init__(self, local: tuple[Tensor, ...], leg: Leg, span: Span, ranks: Ranks) -> None:
        self._local, self._leg, self._span, self._ranks = local, leg, span, ranks
        ends = list(accumulate((span.counts[rank] for rank in leg.ranks), initial=0))
        self._rows = {rank: slice(*ends[place : place + 2]) for place, rank in enumerate(leg.ranks)}
        self._vectors = local
        self._works: list[dist.Work] = []

    def start_hop(self, to_go: int) -> None:
        """Starts the hop after which `to_go - 1` are left, if this leg has so many."""
        place = len(self._leg.hops) - to_go
        if place < 0:
            return
        if place == 0:
            total = sum(self._span.counts[rank] for rank in self._leg.ranks)
            self._vectors = tuple(each.new_empty(total, *each.shape[1:]) for each in self._local)
        self.end_hop()
        hop = self._leg.hops[place]
        sends = [(peer, each) for peer, source in hop.sends for each in self._of(source)]
        receives = [(peer, each) for peer, source in hop.receives for each in self._of(source)]
        self._works = post(sends, receives, self._ranks.group)

    def end_hop(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []

    def blocks(self) -> list[Block]:
        """The leg's rows, neighbouring ranks together."""
        found: list[Block] = []
        for run in _runs(self._leg.ranks):
            columns = slice(self._span.rows_of(run[0]).start, self._span.rows_of(run[-1]).stop)
            rows = slice(self._rows[run[0]].start, self._rows[run[-1]].stop)
            if columns.stop > columns.start:
                found.append(Block(columns, tuple(each[rows] for each in self._vectors)))
        return found

    def _of(self, rank: int) -> list[Tensor]:
        if rank == self._ranks.rank:
            return list(self._local)
        return [each[self._rows[rank]] for each in self._vectors]


def _runs(ranks: tuple[int, ...]) -> list[list[int]]:
    """Cut where a rank does not follow the one before it."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] + 1 == rank:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return runs


class Sums:
    """For every row of the batch a sum over ranks, which only the rank that holds the row gets to see.

    A part is rounded once for each hop to the type that travels, and added up in its own type.
    """

    def __init__(self, columns: Columns, like: Tensor, travels_as: torch.dtype) -> None:
        """`like` has the type and device of the parts, and their shape but for the rows."""
        self._span, self._ranks = columns.span, columns.ranks
        self._dtype = travels_as
        self._nothing = like[:0]
        self._own = self._nothing
        self._parts: dict[int, Tensor] = {}
        self._returns: list[_Return] = []

    def add(self, columns: slice, part: Tensor) -> None:
        """Takes, and keeps, what this rank adds to the rows of one block, [rows, ...]."""
        for rank, count in enumerate(self._span.counts):
            rows = self._span.rows_of(rank)
            if count and columns.start <= rows.start and rows.stop <= columns.stop:
                self._parts[rank] = part[rows.start - columns.start : rows.stop - columns.start]

    def send_off(self, leg: Leg) -> None:
        """Starts what was added for `leg` on its way, and moves on what is."""
        parts = {rank: self._parts.pop(rank, self._nothing) for rank in leg.ranks}
        self._own = parts.get(self._ranks.rank, self._own)
        self._proceed()
        trip = _Return({**parts, self._ranks.rank: self._own}, leg, self._span, self._ranks)
        if trip.start_hop(self._dtype):
            self._returns.append(trip)

    def own(self) -> Tensor:
        """The sums of the rows of this rank, [local, ...], once all legs were sent off."""
        while self._returns:
            self._proceed()
        return self._own

    def _proceed(self) -> None:
        """Ends the hop that every leg under way is in, and starts the next one of those that have one."""
        for each in self._returns:
            each.end_hop()
        self._returns = [each for each in self._returns if each.start_hop(self._dtype)]


class _Return:
    """The sums of one leg under way to the ranks that hold their rows: its hops backward."""

    def __init__(self, parts: dict[int, Tensor], leg: Leg, span: Span, ranks: Ranks) -> None:
        self._parts, self._span, self._ranks = parts, span, ranks
        self._hops = list(leg.hops)
        self._leaving: list[tuple[int, Tensor]] = []
        self._arriving: list[tuple[int, int, Tensor]] = []
        self._works: list[dist.Work] = []

    def start_hop(self, dtype: torch.dtype) -> bool:
        """False if there is none left."""
        if not self._hops:
            return False
        hop = self._hops.pop()
        like = self._parts[self._ranks.rank]
        self._leaving = [(peer, self._parts[source].to(dtype).contiguous()) for peer, source in hop.receives]
        self._arriving = [
            (peer, source, like.new_empty(self._span.counts[source], *like.shape[1:], dtype=dtype))
            for peer, source in hop.sends
        ]
        receives = [(peer, part) for peer, _, part in self._arriving]
        self._works = post(self._leaving, receives, self._ranks.group)
        return True

    def end_hop(self) -> None:
        for work in self._works:
            work.wait()
        for _, source, part in self._arriving:
            self._parts[source].add_(part)
        self._works, self._arriving, self._leaving = [], [], []
