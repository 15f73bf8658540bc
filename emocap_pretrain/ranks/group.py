"""Defines `RankGroup`, which holds all ranks of a job and has the collectives of the training function as methods.

All ranks of a group must call its collectives in the same order. Each collective has the decorator `collective`, and a
test compares the calls that two ranks have recorded. The losses and DeepSpeed call further collectives directly.

If one rank raises an error while the other ranks wait in a collective, these ranks wait until the timeout. Therefore
work that can fail on one rank, and whose result all ranks need, runs through `run_on_main` or `run_on_all`. If the work
fails, they send its error to the other ranks instead of its result (decision 28).
"""

import functools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from emocap_shards.errors import StoreError
from torch.distributed import ProcessGroup

from emocap_pretrain.errors import CheckpointError, ConfigError, EmocapError, LostContact, Superseded
from emocap_pretrain.ranks.info import Rank, RankInfo

Value = TypeVar("Value")
Given = ParamSpec("Given")

# If one rank raises one of these errors, all ranks raise an error of the same class with the same message. The input or
# the whole run is the cause, so no rank is named.
_SHARED: dict[str, type[EmocapError]] = {each.__name__: each for each in (ConfigError, Superseded)}

_recordings: list["Recording"] = []


@dataclass
class Recording:
    """Records the collectives that this process has called.

    The keys of `calls` are the names of groups (`RankGroup.name`). Each value lists the names of the collectives of one
    group, in the order of the calls.
    """

    calls: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    lock: threading.Lock = field(default_factory=threading.Lock)  # Other threads call the collectives of their groups.


@contextmanager
def recorded_collectives() -> Generator[Recording]:
    """Records the collectives that this process calls within the block, in all its threads.

    Tests use it to compare what two ranks have called. Blocks may be nested; each has its own recording.
    """
    recording = Recording()
    _recordings.append(recording)
    try:
        yield recording
    finally:
        _recordings.remove(recording)


def collective(
    call: Callable[Concatenate["RankGroup", Given], Value],
) -> Callable[Concatenate["RankGroup", Given], Value]:
    """Decorates a method of `RankGroup` that all ranks must call in the same order, so that its calls are recorded.

    The decorator also shows a reader of the code that the method is a collective. It does not synchronize the ranks. If
    a collective calls another one, both calls are recorded.
    """

    @functools.wraps(call)
    def recorded(group: "RankGroup", *arguments: Given.args, **named: Given.kwargs) -> Value:
        for recording in _recordings:
            with recording.lock:
                recording.calls.setdefault(group.name, []).append(call.__name__)
        return call(group, *arguments, **named)

    return recorded


@dataclass(frozen=True, slots=True)
class RankGroup:
    """Represents a group of all ranks of the job, with this rank's number, its device and torch's process group.

    A job may have several groups of the same ranks; the method `patient` makes a further one. Only the collectives of
    the same group must have the same order on all ranks. So each thread that calls collectives needs a group of its
    own.

    If the job has a single process, `process_group` is None. The collectives then return at once, so callers need no
    branch for this case:

        group = RankGroup(Rank(), "cpu", None)
        group.run_on_main(lambda: 3)  # 3
        group.gather("host-a")  # ["host-a"]

    Attributes:
        info: The number of this rank, and the number of all ranks.
        device: The name of this rank's torch device, such as `cuda:3` or `cpu`.
        process_group: Torch's group of the ranks; None if the job has a single process.
        name: The name under which a `Recording` lists the collectives of this group.
    """

    info: RankInfo
    device: str
    process_group: ProcessGroup | None
    name: str = "training"

    @property
    def rank(self) -> int:
        return self.info.rank

    @property
    def world_size(self) -> int:
        return self.info.world_size

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @collective
    def run_on_main(self, act: Callable[[], Value], *, failing: str | None = None) -> Value:
        """Runs `act` on rank 0 and returns its value on every rank.

        If `act` raises an error, every rank raises an error by the rules of `run_on_all`. The other ranks wait while
        `act` runs, at most for the timeout of the group. If `act` may take longer, the group must come from `patient`.

        Args:
            act: A function that only rank 0 calls. The other ranks receive its value as a pickle.
            failing: First words of the `CheckpointError` that is raised if `act` fails, such as "the checkpoint was not
                saved"; None if no `CheckpointError` is wanted.
        """
        outcome, error = _tried(act) if self.is_main else (_Outcome(), None)
        # The broadcast is unconditional: rank 0 sends its error too, otherwise the other ranks would wait for a value.
        outcome = self.broadcast_from_main(outcome)
        _raise_failure(outcome, 0, error, failing)
        return outcome.value

    @collective
    def run_on_all(self, act: Callable[[], Value], *, failing: str | None = None) -> list[Value]:
        """Runs `act` on every rank and returns all values in the order of the ranks.

        No rank returns before every rank has run `act`. If `act` fails on some rank, every rank raises an error. If
        `failing` is None, each rank on which `act` failed raises the error of its own `act`, and the other ranks raise
        one of the errors below. If `failing` is given, all ranks raise one of the errors below. Which one it is depends
        on the first error: the error of the failed rank with the lowest number.

        Args:
            act: A function that every rank calls. Its values are exchanged as pickles.
            failing: First words of the `CheckpointError` that is raised if `act` fails, such as "the checkpoint was not
                saved"; None if no `CheckpointError` is wanted.

        Raises:
            ConfigError, Superseded: If the first error has this class. Its message is kept.
            CheckpointError: If the first error has another class, and `failing` is given. The message begins with
                `failing` and names the rank.
            LostContact: If the first error has another class, and `failing` is None.
        """
        outcome, error = _tried(act)
        outcomes = self.gather(outcome)
        # All ranks look at the same outcomes in the same order, so all of them find the same rank to blame.
        for rank, each in enumerate(outcomes):
            _raise_failure(each, rank, error, failing)
        return [each.value for each in outcomes]

    @collective
    def collect_on_main(self, act: Callable[[], Value]) -> list[Value] | None:
        """Runs `act` on every rank. Returns all values in the order of the ranks on rank 0, and None on the others.

        The values of all ranks must fit into the memory of rank 0 only. If `act` fails on some rank, every rank raises
        an error by the rules of `run_on_all`.

        Args:
            act: A function that every rank calls. Its values are sent to rank 0 as pickles.
        """
        outcome, error = _tried(act)
        for rank, each in enumerate(self.gather(replace(outcome, value=None))):
            _raise_failure(each, rank, error, None)
        if self.process_group is None:
            return [outcome.value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(outcome.value, values, dst=0, group=self.process_group)
        return values

    @collective
    def broadcast_from_main(self, value: Any) -> Any:
        """Returns rank 0's `value` on every rank. It is sent as a pickle. The `value` of other ranks is ignored."""
        if self.process_group is None:
            return value
        box: list[Any] = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self.process_group, device=torch.device(self.device))
        return box[0]

    @collective
    def gather(self, value: Value) -> list[Value]:
        """Returns, on every rank, the values of all ranks in the order of the ranks. Values are sent as pickles."""
        if self.process_group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    @collective
    def any_rank(self, flag: bool) -> bool:
        """Returns, on every rank, whether the flag is set on at least one rank."""
        return bool(self.maximum([int(flag)])[0])

    @collective
    def maximum(self, numbers: Sequence[int]) -> list[int]:
        """Returns the elementwise maximum of all ranks' numbers. All ranks must pass equally many numbers."""
        if self.process_group is None:
            return list(numbers)
        greatest = torch.tensor(numbers, device=self.device)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.process_group)
        return greatest.tolist()

    @collective
    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Returns the numbers of every rank in the order of the ranks. All ranks must pass equally many numbers.

        The numbers are exchanged as one float64 tensor on the ranks' device, which is quicker than `gather`.
        """
        if self.process_group is None:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(rows, own, group=self.process_group)
        return torch.stack(rows).tolist()

    @collective
    def patient(self, name: str) -> "RankGroup":
        """Returns a new gloo group of the same ranks, for slow work or for a thread that runs beside the training.

        The timeout of its collectives is a day, because a rank may wait that long for a store. So these collectives may
        detect a lost rank only after a day. The watchdog, or a collective of the group "training" with its short
        timeout, detects it earlier.

        Args:
            name: The name under which a `Recording` (used in tests) lists the collectives of the new group.
        """
        if self.process_group is None:
            return replace(self, name=name)
        # Gloo, also on GPUs: its collectives run on the CPU, beside the collectives of NCCL that the training queues.
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        return RankGroup(self.info, "cpu", cast(ProcessGroup, group), name)


ALONE = RankGroup(Rank(), "cpu", None)
"""The group of a process that is the only rank, for work that needs no device."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Holds the outcome of a function on one rank: its value, or the message of its error.

    `message` is None if there was no error. `shared` is "ConfigError" or "Superseded" for an error of this class, so
    that the other ranks can raise an error of the same class. In all other cases it is None.
    """

    value: Any = None
    message: str | None = None
    shared: str | None = None


def _tried(act: Callable[[], Any]) -> tuple[_Outcome, Exception | None]:
    try:
        return _Outcome(act()), None
    except Exception as error:  # noqa: BLE001 - raised again by `_raise_failure`, on every rank
        message = " ".join(str(error).split())
        # The messages of these classes are written for a user; the message of any other error needs its class.
        if not (message and isinstance(error, (EmocapError, StoreError, OSError))):
            message = f"{type(error).__name__}: {message}".removesuffix(": ")
        shared = next((name for name, kind in _SHARED.items() if isinstance(error, kind)), None)
        return _Outcome(None, message, shared), error


def _raise_failure(outcome: _Outcome, rank: int, own: Exception | None, failing: str | None) -> None:
    """Raises an error on this rank if `outcome` is a failure. `RankGroup.run_on_all` describes the choice of the error.

    Args:
        outcome: The outcome of the rank with the number `rank`, which may be another rank than this one.
        rank: The number of the rank to which `outcome` belongs.
        own: The error that the function has raised on this rank; None if it has not failed here.
        failing: First words of a `CheckpointError`; None if no `CheckpointError` is wanted.
    """
    if outcome.message is None:
        return
    if own is not None and failing is None:
        raise own
    if outcome.shared is not None:
        raise _SHARED[outcome.shared](outcome.message) from own
    if failing is not None:
        raise CheckpointError(f"{failing}: rank {rank}: {outcome.message}") from own
    raise LostContact(f"rank {rank} failed: {outcome.message}")
