"""Makes this process a rank of the job: sets its threads and its device, and joins the process group."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from emocap_pretrain.config.schema import ClusterConfig
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import RankInfo
from emocap_pretrain.ranks.runtime import Runtime


@contextmanager
def joined(settings: ClusterConfig, runtime: Runtime) -> Generator[RankGroup]:
    """Makes this process a rank of the job within the block, and yields the group of all ranks.

    If a process group exists already, because Ray has made one, the group is used, and it stays open after the block.
    Otherwise the group is made from the environment variables that the launcher has set, with NCCL on GPUs and gloo on
    CPUs. In this case the function is a collective: it waits until all ranks of the job have joined.

    Args:
        settings: The number of threads, and the timeout of the collectives.
        runtime: The number and the device of this rank, and the number of ranks.
    """
    info, device = runtime.rank_info, runtime.device
    use_threads(settings, info)
    made = not dist.is_initialized()
    # NCCL's collectives of Python objects (`RankGroup.gather`) copy through the current device of the process.
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if made:
        backend = "nccl" if device.startswith("cuda") else "gloo"
        # This timeout is longer than `timeout_s`, so that the watchdog names the missing rank before torch gives up.
        timeout = timedelta(seconds=settings.group_timeout_s)
        store = _store(info, timeout)
        dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size, timeout=timeout)
    clean = False
    try:
        yield RankGroup(info, device, dist.group.WORLD if info.world_size > 1 else None)
        clean = True
    finally:
        # NCCL ends a group on all ranks together, so a rank that failed alone would wait for the others here.
        if made and (clean or device == "cpu"):
            dist.destroy_process_group()


def _store(info: RankInfo, timeout: timedelta) -> dist.Store | None:  # pyright: ignore[reportPrivateImportUsage]
    """Returns the store through which the ranks find each other; None for the one that torch makes by default."""
    if info.world_size == 1:
        # A single process needs no address.
        return dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        return None
    # torchrun --max-restarts keeps its store, in which the ranks of the attempt before have left their addresses.
    store, _, _ = next(rendezvous("env://", info.rank, info.world_size, timeout=timeout))
    return dist.PrefixStore(f"attempt {attempt}", store)  # pyright: ignore[reportPrivateImportUsage]


def lost_contact(error: Exception) -> bool:
    """Returns whether an error means that a collective has failed because another rank is gone.

    Errors that torch itself raises for a process group have the class `DistError`. Gloo raises a plain `RuntimeError`,
    which is recognized by the path of gloo's source file in its message.
    """
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def use_threads(settings: ClusterConfig, info: RankInfo) -> None:
    """Sets the number of torch's threads: `threads_per_rank`, or by default this rank's share of the cores.

    OMP_NUM_THREADS is ignored. Each thread computes a part of a sum, so another number of threads leads to another
    rounding. Two runs can give equal results only if their numbers of threads are equal.
    """
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(settings.threads_per_rank or max(1, cores // info.local_world_size))
