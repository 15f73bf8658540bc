"""The all-gather of columns in blocks, and the reduce-scatter of their gradients."""

import weakref
from typing import Any

import pytest
import torch
from emocap_kernels.distributed import schedule as communication
from emocap_kernels.distributed.columns import ColumnAllGather, ColumnReduceScatter
from emocap_kernels.distributed.ranks import Partition, ranks_of
from rank_pool import RankPool

COUNTS = {2: (3, 2), 3: (2, 0, 4), 4: (1, 3, 0, 2)}
CPU = torch.device("cpu")


def columns_of(group: Any, schedule: Any) -> ColumnAllGather:
    """Returns an all-gather of two tensors. Row r is r in the first one, and (10 r, 10 r + 1) in the second one."""
    ranks = ranks_of(group, CPU)
    partition = Partition(COUNTS[ranks.size], ranks.rank)
    rows = partition.indices(CPU)
    return ColumnAllGather(
        (rows[:, None].float(), torch.stack([10 * rows, 10 * rows + 1], 1)), partition, ranks, schedule
    )


def passes_job(group: Any, rank: int, payload: tuple[str, int]) -> list[list[tuple[int, int]]]:
    """Returns where the blocks of two passes begin and end, and checks what they hold."""
    schedule, communication.MIN_STAGE_ROWS = payload
    columns = columns_of(group, schedule)
    passes: list[list[tuple[int, int]]] = []
    for _ in range(2):
        blocks = list(columns.blocks())
        for block in blocks:
            rows = torch.arange(block.columns.start, block.columns.stop)
            assert torch.equal(block.vectors[0], rows[:, None].float())
            assert torch.equal(block.vectors[1], torch.stack([10 * rows, 10 * rows + 1], 1))
        passes.append([(block.columns.start, block.columns.stop) for block in blocks])
    everything = columns.gather_all()
    assert torch.equal(everything[0][:, 0], torch.arange(sum(COUNTS[group.size()])).float())
    return passes


@pytest.mark.parametrize("least_rows", [1, 4096])
@pytest.mark.parametrize("schedule", ["gather", "hierarchical", "ring"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_pass_yields_every_row_once_in_the_same_blocks(ranks: RankPool, size, schedule, least_rows):
    total = sum(COUNTS[size])
    for rank, (first, second) in enumerate(ranks.run(passes_job, [(schedule, least_rows)] * size)):
        assert first == second
        assert sorted(row for block in first for row in range(*block)) == list(range(total))
        if COUNTS[size][rank]:
            own = Partition(COUNTS[size], rank).own
            assert first[0] == (own.start, own.stop)


def lives_job(group: Any, rank: int, schedule: str) -> int:
    """Returns how many received blocks are in memory at most while they are yielded."""
    communication.MIN_STAGE_ROWS = 1
    columns, seen, most = columns_of(group, schedule), [], 0
    for number, block in enumerate(columns.blocks()):
        if number:
            seen.append(weakref.ref(block.vectors[0]))
        del block
        most = max(most, sum(each() is not None for each in seen))
    return most


def test_a_ring_frees_the_rows_that_were_used(ranks: RankPool):
    # One more is being received, and is no block yet.
    assert max(ranks.run(lives_job, ["ring"] * 4)) == 1
    assert max(ranks.run(lives_job, ["gather"] * 4)) > 1


def sums_job(group: Any, rank: int, payload: tuple[str, torch.dtype]) -> torch.Tensor:
    """Returns the sums of the own rows, to which rank r adds (r + 1) times the index of each row."""
    schedule, dtype = payload
    columns = columns_of(group, schedule)
    sums = ColumnReduceScatter(columns, torch.empty(0, 1), dtype)
    for block in columns.blocks(sums):
        sums.add(block.columns, (rank + 1) * block.vectors[0])
    return sums.result()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("schedule", ["gather", "hierarchical", "ring"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_gets_the_sums_of_its_own_rows(ranks: RankPool, size, schedule, dtype):
    answers = ranks.run(sums_job, [(schedule, dtype)] * size)
    found = torch.cat(answers)[:, 0]
    # Small whole numbers are exact in bfloat16 too.
    assert torch.equal(found, torch.arange(len(found)).float() * sum(range(1, size + 1)))
    assert [len(each) for each in answers] == list(COUNTS[size])
