"""Who is in a group, and where its processes talk."""

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


def test_the_ranks_of_a_group_learn_who_shares_a_machine(ranks: RankPool):
    # The pool names its machines so that two ranks share one.
    assert ranks.run(known_job, [None] * 4) == [(4, rank, 2, True) for rank in range(4)]
    assert ranks.run(known_job, [None] * 3) == [(3, rank, 3, True) for rank in range(3)]
    assert ranks.run(known_job, [None]) == [(1, 0, 1, True)]


def device_job(group: Any, rank: int, payload: None) -> list[list[int]]:
    """Two groups side by side that say they speak for another device only, as those of NCCL do."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    said = dist.get_backend_config
    try:
        dist.get_backend_config = lambda _: "cuda:other"
        mine = groups[rank // 2]
        return all_gather_integers([rank, 7], mine, new_cpu_group(mine))
    finally:
        dist.get_backend_config = said


def test_processes_of_a_group_without_a_cpu_talk_beside_it(ranks: RankPool):
    first, second = [[0, 7], [1, 7]], [[2, 7], [3, 7]]
    assert ranks.run(device_job, [None] * 4) == [first, first, second, second]


def test_without_a_group_a_process_is_alone():
    assert ranks_of(None, CPU) is SINGLE_RANK
    assert (SINGLE_RANK.size, SINGLE_RANK.rank, SINGLE_RANK.node) == (1, 0, 1)


LEAVES = """
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


def test_a_group_that_was_used_ends_with_its_owner():
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
