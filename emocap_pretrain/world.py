"""Joins this process to the others: threads, determinism, device, process group."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from emocap_pretrain.config.schema import Cluster
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
        """Returns on every rank what `act` gives on rank 0; an error of rank 0 is raised on all, so that none waits."""
        if self.group is None:
            return act()
        outcome = _Outcome.of(act) if self.is_main else _Outcome()
        answer: _Outcome = self.share(outcome.told())
        outcome.raise_own()
        answer.raise_of(rank=0)
        return answer.value

    def from_all(self, act: Callable[[], Value]) -> list[Value]:
        """Returns on every rank what `act` gives on each rank, in rank order; a collective.

        An error of any rank is raised on all of them, so that no rank waits for one that has failed.
        """
        if self.group is None:
            return [act()]
        outcome = _Outcome.of(act)
        answers: list[_Outcome] = self.collect(outcome.told())
        outcome.raise_own()
        for rank, answer in enumerate(answers):
            answer.raise_of(rank)
        return [answer.value for answer in answers]

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
        """Returns whether the flag is up on some rank; a collective."""
        return bool(self.highest([int(flag)])[0])

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """The greatest of each number over all ranks; a collective."""
        if self.group is None:
            return list(numbers)
        greatest = torch.tensor(numbers, device=self.device)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.group)
        return greatest.tolist()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome of a rank's act: a value, or an error of which the other ranks are told the message."""

    value: Any = None
    error: Exception | None = None
    message: str | None = None
    is_wrong_input: bool = False

    @classmethod
    def of(cls, act: Callable[[], Any]) -> "_Outcome":
        try:
            return cls(act())
        except Exception as error:  # noqa: BLE001 - it is raised again, here and on every other rank
            return cls(None, error, str(error), isinstance(error, ConfigError))

    def told(self) -> "_Outcome":
        """The outcome without the error itself, which may hold what cannot be sent to another process."""
        return replace(self, error=None)

    def raise_own(self) -> None:
        if self.error is not None:
            raise self.error

    def raise_of(self, rank: int) -> None:
        """Raises what is known of another rank's error.

        Raises:
            ConfigError: If a value is wrong; every rank says so alike.
            LostContact: If the rank has failed.
        """
        if self.message is not None:
            raise (
                ConfigError(self.message) if self.is_wrong_input else LostContact(f"rank {rank} failed: {self.message}")
            )


@contextmanager
def joined(settings: Cluster, runtime: Runtime) -> Generator[World]:
    """Set this process up as one rank and take it down again.

    A process group that exists already (Ray made one) is used and not ended.
    """
    place, device = runtime.place, runtime.device
    use_threads(settings, place)
    made = not dist.is_initialized()
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if made:
        _init(place, device, settings.group_timeout_s)
    clean = False
    try:
        yield World(place, device, dist.group.WORLD if place.world > 1 else None)
        clean = True
    finally:
        # NCCL takes its groups down together: a rank that failed alone would wait for the others here.
        if made and (clean or device == "cpu"):
            dist.destroy_process_group()


def lost_contact(error: RuntimeError) -> bool:
    """Returns whether a collective failed because another rank is gone; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def use_threads(settings: Cluster, place: Place) -> None:
    """Sets the settings' thread count, whatever the launcher put into OMP_NUM_THREADS.

    Sums are grouped by thread: another count rounds otherwise, so equal runs need equal counts.
    """
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(settings.threads_per_rank or max(1, cores // place.local_world))


def _init(place: Place, device: str, timeout_s: int) -> None:
    backend = "nccl" if device.startswith("cuda") else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if place.world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]
    else:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=timeout)
