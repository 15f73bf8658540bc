"""Gathers the rows of all ranks in blocks, and sends the gradients of the rows back to the ranks that hold them.

Every rank scores its own images against the texts of all ranks. A row that is gathered is a text (or a sentence of the
local loss), together with the guide features by which mining compares it. It is therefore a column of the score matrix.
While the caller computes with one block, the next one is received. On a GPU, nothing in this module makes the host
wait. The messages and their order follow from the communication plan and the row counts, never from tensor values.

`ColumnAllGather` yields the blocks, and `ColumnReduceScatter` collects their gradients. The batch of each loss holds a
`ColumnAllGather`, and a pass over the scores is one loop over its blocks. Decision 11 says why these classes do not use
torch's own collectives. The module `schedule` makes the communication plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from emocap_kernels.distributed.collectives import start_messages
from emocap_kernels.distributed.ranks import Partition, Ranks
from emocap_kernels.distributed.schedule import Schedule, Stage, plan_communication


@dataclass(frozen=True, slots=True)
class ColumnBlock:
    """Holds consecutive rows of the global batch that arrived together.

    Attributes:
        columns: The global indices of the rows, which are the columns of the score matrix.
        vectors: The rows of each gathered tensor, [rows, ...] in the type of that tensor.
    """

    columns: slice
    vectors: tuple[Tensor, ...]


class ColumnAllGather:
    """Gathers tensors of which each rank holds some rows, and yields the rows in blocks as they arrive.

    Autograd does not differentiate the gathered rows; `ColumnReduceScatter` sends their gradients back.

    Unless the schedule is `ring`, the first complete loop over `blocks` keeps the blocks, and later loops get them
    again without messages. With `ring`, every loop receives the rows again. An autograd function that needs the rows in
    backward saves what `pack` returns in forward, and calls `unpack` in backward.

    Example:
        ```python
        columns = ColumnAllGather((text,), partition, ranks)
        sums = ColumnReduceScatter(columns, like=text[:0].float(), message_dtype=text.dtype)
        for block in columns.blocks(sums):
            (texts,) = block.vectors
            sums.add(block.columns, gradient_of(texts))  # float32, like `texts`
        by_text = sums.result()  # the gradient of the texts of this rank, over all ranks
        ```
    """

    def __init__(
        self, local: Sequence[Tensor], partition: Partition, ranks: Ranks, schedule: Schedule = "auto"
    ) -> None:
        self.partition, self.ranks = partition, ranks
        self.plan = plan_communication(schedule, partition, ranks)
        # Messages need contiguous tensors. With one rank there are none, and a block is made of the tensors themselves.
        self._local = tuple(each if ranks.size == 1 else each.detach().contiguous() for each in local)
        self._kept: list[list[ColumnBlock]] | None = None

    def blocks(self, gradients: ColumnReduceScatter | None = None) -> Iterator[ColumnBlock]:
        """Yields every row of the batch once, in blocks. The rank's own rows come first.

        This is a collective: all ranks must call it, and must take all blocks. Messages are started only while the
        caller takes blocks, so other ranks would wait for a rank that stops early. Each call yields the same blocks in
        the same order.

        Args:
            gradients: Collects the gradients of the rows. The caller adds those of a block before it requests the next
                block. Blocks that arrive together are a `Stage`. As soon as the caller has taken all blocks of a stage,
                their gradients are sent to the ranks that hold the rows.
        """
        arriving = self._arriving() if self._kept is None else iter(self._kept)
        seen: list[list[ColumnBlock]] = []
        # On each rank, the rows of the next stages are requested before a stage is used, and its gradients are sent
        # afterwards. Ranks match messages by order alone, and this order is the same on all of them.
        for stage, blocks in zip(self.plan.stages, arriving, strict=True):
            yield from blocks
            if gradients is not None:
                gradients.send(stage)
            if self.plan.keeps_rows:
                seen.append(blocks)
        self._kept = seen if self.plan.keeps_rows else None

    def pack(self) -> tuple[ColumnAllGather, tuple[Tensor, ...]]:
        """Returns a copy of this object without its tensors, and the tensors, for `save_for_backward` of autograd.

        First come this rank's own tensors, in the order in which they were given for gathering. If received blocks are
        kept, their tensors follow, block by block.
        """
        # With one rank, the only block consists of the local tensors, which are returned in any case.
        kept = self._kept if self.ranks.size > 1 else None
        blocks = [block for stage in kept or [] for block in stage]
        empty = copy(self)
        empty._local = ()
        empty._kept = None if kept is None else [[replace(block, vectors=()) for block in stage] for stage in kept]
        return empty, (*self._local, *(each for block in blocks for each in block.vectors))

    def unpack(self, tensors: Sequence[Tensor]) -> ColumnAllGather:
        """Returns a copy of this object with its tensors restored.

        `pack` returned this object, which has no tensors, together with `tensors`.
        """
        stages = self._kept or []
        number = len(tensors) // (1 + sum(len(stage) for stage in stages))
        held = iter([tuple(tensors[first : first + number]) for first in range(0, len(tensors), number)])
        full = copy(self)
        full._local = next(held)
        if self._kept is not None:
            full._kept = [[replace(block, vectors=next(held)) for block in stage] for stage in stages]
        return full

    def gather_all(self) -> tuple[Tensor, ...]:
        """Returns all rows in the order of their global index, one tensor [total, ...] for each gathered tensor.

        This is a collective: all ranks must call it.
        """
        blocks = sorted(self.blocks(), key=lambda block: block.columns.start)
        if len(blocks) == 1:
            return blocks[0].vectors
        return tuple(torch.cat(parts) for parts in zip(*[block.vectors for block in blocks], strict=True))

    def _arriving(self) -> Iterator[list[ColumnBlock]]:
        """Yields a list of blocks for each `Stage` of the communication plan.

        The rows of a stage arrive in one or two hops (steps from rank to rank). While the caller uses the blocks of one
        stage, the last hop of the next stage is already in progress. If the stage after the next has two hops, its
        first hop is in progress as well.
        """
        transfers = [_StageGather(self._local, stage, self.partition, self.ranks) for stage in self.plan.stages]
        # A transfer is dropped as soon as its stage has been used. So with `ring`, which keeps no blocks, the rows that
        # were used are freed.
        while transfers:
            transfer = transfers.pop(0)
            transfer.wait()
            # A stage of two hops starts its first hop while the stage two places before it is in use. There is always
            # such a stage: the rank's own rows and those of its own machine come first.
            for hops_left, later in enumerate(transfers[:2], start=1):
                later.start_hop(hops_left)
            yield transfer.blocks()


class _StageGather:
    """Receives the rows of one stage of the communication plan, and sends what other ranks receive in this stage."""

    def __init__(self, local: tuple[Tensor, ...], stage: Stage, partition: Partition, ranks: Ranks) -> None:
        self._local, self._stage, self._partition, self._ranks = local, stage, partition, ranks
        # The rows of the stage are one piece of memory, in the order of `stage.ranks`.
        ends = list(accumulate((partition.counts[rank] for rank in stage.ranks), initial=0))
        self._rows = {rank: slice(*ends[place : place + 2]) for place, rank in enumerate(stage.ranks)}
        self._vectors = local
        self._works: list[dist.Work] = []

    def start_hop(self, hops_left: int) -> None:
        """Starts the last hop of this stage if `hops_left` is 1, or the hop before the last if it is 2.

        A hop is one step of the rows from rank to rank. If the stage has no such hop, nothing is done.
        """
        place = len(self._stage.hops) - hops_left
        if place < 0:
            return
        # Memory is allocated no earlier than the first message needs it, which bounds what a `ring` holds.
        if place == 0:
            total = sum(self._partition.counts[rank] for rank in self._stage.ranks)
            self._vectors = tuple(each.new_empty(total, *each.shape[1:]) for each in self._local)
        # The second hop sends what the first one received.
        self.wait()
        hop = self._stage.hops[place]
        sends = [(peer, each) for peer, source in hop.sends for each in self._of(source)]
        receives = [(peer, each) for peer, source in hop.receives for each in self._of(source)]
        self._works = start_messages(sends, receives, self._ranks.group)

    def wait(self) -> None:
        """Waits for the messages of the current hop. With NCCL only the stream of the device waits, not the host."""
        for work in self._works:
            work.wait()
        self._works = []

    def blocks(self) -> list[ColumnBlock]:
        """Returns the received rows of the stage. Rows of consecutive ranks form one block."""
        found: list[ColumnBlock] = []
        for run in _consecutive_runs(self._stage.ranks):
            columns = slice(self._partition.rows_of(run[0]).start, self._partition.rows_of(run[-1]).stop)
            rows = slice(self._rows[run[0]].start, self._rows[run[-1]].stop)
            if columns.stop > columns.start:
                found.append(ColumnBlock(columns, tuple(each[rows] for each in self._vectors)))
        return found

    # Returns the rows of a rank: as the memory to receive into, or, once they are here, as the rows to send.
    def _of(self, rank: int) -> list[Tensor]:
        if rank == self._ranks.rank:
            return list(self._local)
        return [each[self._rows[rank]] for each in self._vectors]


def _consecutive_runs(ranks: tuple[int, ...]) -> list[list[int]]:
    """Splits a list of ranks into runs of consecutive numbers."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] + 1 == rank:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return runs


class ColumnReduceScatter:
    """Sums tensors over the ranks, row by row, and gives each sum only to the rank that holds the row.

    The sums are sent along the hops of the all-gather in reverse order. For each hop, a sum is converted to the type of
    the messages (`message_dtype`). The receiving rank adds it to its own sum in the type of `like`.

    The object is passed to `ColumnAllGather.blocks`, which calls `send` for each stage. The caller calls `add` for each
    block, and `result` at the end.
    """

    def __init__(self, columns: ColumnAllGather, like: Tensor, message_dtype: torch.dtype) -> None:
        """Prepares an empty reduce-scatter, to which no contribution has been added yet.

        Args:
            columns: The all-gather whose rows the sums belong to.
            like: A tensor of the type and device of the sums, and of their shape except for the number of rows.
            message_dtype: The type in which sums are sent.
        """
        self._partition, self._ranks = columns.partition, columns.ranks
        self._dtype = message_dtype
        self._nothing = like[:0]
        self._own = self._nothing
        self._parts: dict[int, Tensor] = {}
        self._returning: list[_StageReduce] = []

    def add(self, columns: slice, part: Tensor) -> None:
        """Takes `part`, [rows, ...], which is what this rank contributes to the sums of one block.

        `columns` are the global indices of the block's rows (`ColumnBlock.columns`). The caller must not change `part`
        afterwards, because it is sent, or the contributions of other ranks are added to it in place.
        """
        # A block consists of all rows of one or more ranks, never of a part of them.
        for rank, count in enumerate(self._partition.counts):
            rows = self._partition.rows_of(rank)
            if count and columns.start <= rows.start and rows.stop <= columns.stop:
                self._parts[rank] = part[rows.start - columns.start : rows.stop - columns.start]

    def send(self, stage: Stage) -> None:
        """Starts to send the sums of `stage` to the ranks that hold the rows.

        It also starts the next hop (step from rank to rank) of all earlier stages whose sums have not arrived yet.
        """
        parts = {rank: self._parts.pop(rank, self._nothing) for rank in stage.ranks}
        # The first stage consists of this rank's own rows. Each later transfer gets them too, because it adds the sums
        # that other ranks send for them.
        self._own = parts.get(self._ranks.rank, self._own)
        self._advance()
        transfer = _StageReduce({**parts, self._ranks.rank: self._own}, stage, self._partition, self._ranks)
        if transfer.start_hop(self._dtype):
            self._returning.append(transfer)

    def result(self) -> Tensor:
        """Returns the sums of the rows of this rank, [local, ...]. It must be called after `send` of the last stage.

        This is a collective, because it completes messages that are still being sent: all ranks must call it.
        """
        while self._returning:
            self._advance()
        return self._own

    def _advance(self) -> None:
        """Waits for the current hop (step from rank to rank) of every stage in progress, and starts its next hop."""
        for each in self._returning:
            each.finish_hop()
        self._returning = [each for each in self._returning if each.start_hop(self._dtype)]


class _StageReduce:
    """Sends the sums of one stage to the ranks that hold the rows, and receives the sums of rows of this rank.

    With two hops, this rank also receives the sums of rows that it forwarded, and sends them on.
    """

    def __init__(self, parts: dict[int, Tensor], stage: Stage, partition: Partition, ranks: Ranks) -> None:
        self._parts, self._partition, self._ranks = parts, partition, ranks
        self._hops = list(stage.hops)
        self._sending: list[tuple[int, Tensor]] = []
        self._receiving: list[tuple[int, int, Tensor]] = []
        self._works: list[dist.Work] = []

    def start_hop(self, dtype: torch.dtype) -> bool:
        """Starts to send sums, converted to `dtype`, back along one hop of the all-gather.

        The hops are taken in reverse order. In each hop, a rank that received rows sends the sums of these rows to the
        rank that sent the rows. Returns False if no hop is left.
        """
        if not self._hops:
            return False
        # The last hop of the all-gather is the first one here. If there are two, a machine's sums for the rows of
        # another machine first come together on the rank that forwarded the rows, and then one sum is sent between the
        # machines.
        hop = self._hops.pop()
        like = self._parts[self._ranks.rank]
        self._sending = [(peer, self._parts[source].to(dtype).contiguous()) for peer, source in hop.receives]
        self._receiving = [
            (peer, source, like.new_empty(self._partition.counts[source], *like.shape[1:], dtype=dtype))
            for peer, source in hop.sends
        ]
        receives = [(peer, part) for peer, _, part in self._receiving]
        self._works = start_messages(self._sending, receives, self._ranks.group)
        return True

    def finish_hop(self) -> None:
        """Waits for the current hop and adds the received sums."""
        for work in self._works:
            work.wait()
        for _, source, part in self._receiving:
            self._parts[source].add_(part)
        # Until here `_sending` has kept the sent copies alive.
        self._works, self._receiving, self._sending = [], [], []
