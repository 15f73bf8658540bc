"""Joins this process to the others: threads, determinism, device, process group."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError, LostContact
from emocap_pretrain.runtime import Place, Runtime

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class World:
    """All ranks of the job, seen from this one. `group` is None when this rank is alone."""

    place: Place
    device: str
    group: ProcessGroup | None

    @property
    def is_main(self) -> bool:
        return self.place.rank == 0

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.group is None:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self.group, device=torch.device(self.device))
        return box[0]

    def from_main(self, act: Callable[[], Value]) -> Value:
        """What `act` gives on rank 0, on every rank; an error of rank 0 is raised on all of them, so none waits."""
        if self.group is None:
            return act()
        value, error = None, None
        if self.is_main:
            try:
                value = act()
            except Exception as caught:  # noqa: BLE001 - raised again below, here and on every other rank
                error = caught
        answer: tuple[Any, str | None, bool] = self.share((value, error and str(error), isinstance(error, ConfigError)))
        if error is not None:
            raise error
        value, told, wrong = answer
        if told is not None:
            raise ConfigError(told) if wrong else LostContact(f"rank 0 failed: {told}")
        return value

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value in rank order, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.place.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def aside(self) -> "World":
        """The same ranks in a gloo group of their own, for a thread beside the training's; a collective.

        Its collectives wait a day: a rank may wait that long for a store. Whoever waits for a rank that is gone learns
        it from the training's group.
        """
        if self.group is None:
            return self
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        return World(self.place, "cpu", cast(ProcessGroup, group))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on some rank; a collective."""
        return bool(self.highest([int(flag)])[0])

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """The greatest of each number over all ranks; a collective."""
        if self.group is None:
            return list(numbers)
        greatest = torch.tensor(numbers, device=self.device)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.group)
        return greatest.tolist()


@contextmanager
def joined(config: Config, runtime: Runtime) -> Generator[World]:
    """Set this process up as one rank and take it down again.

    A process group that exists already (Ray made one) is used and left standing.
    """
    place, device = runtime.place, runtime.device
    use_threads(config, place)
    made = not dist.is_initialized()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if made:
        _init(place, device, config.cluster.group_timeout_s)
    clean = False
    try:
        yield World(place, device, dist.group.WORLD if place.world > 1 else None)
        clean = True
    finally:
        # NCCL takes its groups down together: a rank that failed alone would wait for the others here.
        if made and (clean or device == "cpu"):
            dist.destroy_process_group()


def lost_contact(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def use_threads(config: Config, place: Place) -> None:
    """The config's thread count, whatever the launcher put into OMP_NUM_THREADS.

    Sums are grouped by thread: another count rounds otherwise, so equal runs need equal counts.
    """
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.cluster.threads_per_rank or max(1, cores // place.local_world))


def _init(place: Place, device: str, timeout_s: int) -> None:
    backend = "nccl" if device.startswith("cuda") else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if place.world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]
    else:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=timeout)
