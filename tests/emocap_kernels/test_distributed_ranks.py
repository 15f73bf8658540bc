"""The ranks of a group, and their exchange of integers on the CPU."""

import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist
from emocap_kernels.distributed.ranks import SINGLE_RANK, all_gather_integers, new_cpu_group, ranks_of
from rank_pool import RankPool

CPU = torch.device("cpu")


def known_job(group: Any, rank: int, payload: None) -> tuple[int, int, int, bool]:
    found = ranks_of(group, CPU)
    return found.size, found.rank, found.node, ranks_of(group, CPU) == found


def test_the_ranks_of_a_group_find_out_who_shares_a_machine(ranks: RankPool):
    # In the pool, two ranks share a machine.
    assert ranks.run(known_job, [None] * 4) == [(4, rank, 2, True) for rank in range(4)]
    assert ranks.run(known_job, [None] * 3) == [(3, rank, 3, True) for rank in range(3)]
    assert ranks.run(known_job, [None]) == [(1, 0, 1, True)]


def device_job(group: Any, rank: int, payload: None) -> list[list[int]]:
    """Exchanges integers in two groups at once that support no CPU tensors, as with NCCL."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    original = dist.get_backend_config
    try:
        dist.get_backend_config = lambda _: "cuda:other"
        mine = groups[rank // 2]
        return all_gather_integers([rank, 7], mine, new_cpu_group(mine))
    finally:
        dist.get_backend_config = original


def test_a_group_without_cpu_tensors_gets_a_gloo_group(ranks: RankPool):
    first, second = [[0, 7], [1, 7]], [[2, 7], [3, 7]]
    assert ranks.run(device_job, [None] * 4) == [first, first, second, second]


def test_without_a_group_there_is_one_rank():
    assert ranks_of(None, CPU) is SINGLE_RANK
    assert (SINGLE_RANK.size, SINGLE_RANK.rank, SINGLE_RANK.node) == (1, 0, 1)


PROGRAM = """
import gc, weakref
import torch, torch.distributed as dist
from emocap_kernels import contrastive_loss
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
group = dist.new_group([0])
x = torch.eye(3)
contrastive_loss(x, x, 5.0, group=group)
known = weakref.ref(group)
del group
dist.destroy_process_group()
gc.collect()
print(known() is None)
"""


def test_the_losses_keep_no_reference_to_a_group():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
