"""Injects a fault at every operation of a store: an error or SIGKILL, before or after the operation is executed.

    for fault in sweep(operations_of(act)):
        struck(act, fault, (StoreError,))

An act is a function whose store operations a `Counter` counts; the counter is its argument. The act is run once
without a fault, to count its operations. Then it is run once for each fault, in a forked child. The test looks at the
state that the child leaves, which is the state that the next attempt of a run would find.

The tests on S3 use `sweep_far`, which yields fewer faults, because each child needs a second to make a client. SIGKILL
is injected only after operations that change the store, because a killed read changes nothing. Errors need no child
(`forks=False`).
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store

OPERATIONS = frozenset(
    {
        "delete",
        "delete_tree",
        "exists",
        "get_file",
        "list",
        "put",
        "put_file",
        "put_if_absent",
        "put_if_match",
        "read",
        "read_range",
        "read_ranges",
        "read_versioned",
    }
)
ENDED, FAILED, FELL = 0, 7, 70  # exit codes of a child: the act returned, raised an expected error, raised another


@dataclass(frozen=True)
class Fault:
    """Describes a fault at operation number `at`, counted from 0.

    With `after`, the operation is executed, but its answer is lost. Otherwise it is not executed. `kills` selects
    SIGKILL instead of an error.
    """

    at: int
    after: bool
    kills: bool

    def __str__(self) -> str:
        return f"{'SIGKILL' if self.kills else 'error'} {'after' if self.after else 'before'} operation {self.at}"

    def strike(self, name: str, error: type[Exception]) -> None:
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise error(f"injected by a test: {self} ({name}).")


@dataclass
class Counter:
    """Counts the operations of all threads, and injects the fault at one of them."""

    fault: Fault | None = None
    error: type[Exception] = StoreError
    names: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrapped(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if name == "read_ranges" and not arguments[0]:
                return act(*arguments, **options)  # nothing is asked for
            with self._lock:
                mine = self.fault is not None and len(self.names) == self.fault.at
                self.names.append(name)
            if mine and not self.fault.after:
                self.fault.strike(name, self.error)
            try:
                return act(*arguments, **options)
            finally:  # an operation may also end with an error of its own
                if mine:
                    self.fault.strike(name, self.error)

        return counted


@dataclass
class CountedStore:
    """Forwards calls to a store, and counts its operations. With `far`, a folder claims to be a remote store."""

    store: Store
    counter: Counter
    far: bool = False

    def __getattr__(self, name: str) -> Any:
        act = getattr(self.store, name)
        return self.counter.wrapped(name, act) if name in OPERATIONS else act

    @property
    def is_near(self) -> bool:
        return self.store.is_near and not self.far


def operations_of(act: Callable[[Counter], object]) -> list[str]:
    """Returns the names of the operations of an act without a fault, in order."""
    counter = Counter()
    act(counter)
    return counter.names


def sweep(operations: Sequence[str], *, kills: tuple[bool, ...] = (False, True)) -> Iterator[Fault]:
    for at in range(len(operations)):
        for after in (False, True):
            for kill in kills:
                yield Fault(at, after, kill)


def sweep_far(operations: Sequence[str]) -> Iterator[Fault]:
    for fault in sweep(operations):
        if not fault.kills or (fault.after and operations[fault.at].startswith(("put", "delete"))):
            yield fault


def emptied(url: str) -> str:
    """Deletes all objects at a URL, and returns the URL. A client for another URL would cost half a second."""
    store = open_store(url)
    for entry in store.list():
        store.delete(entry.path)
    return url


def struck(
    act: Callable[[Counter], object],
    fault: Fault,
    expected: tuple[type[Exception], ...],
    *,
    error: type[Exception] = StoreError,
    forks: bool = True,
) -> Literal["killed", "failed", "ended"]:
    """Runs the act with this fault in a forked child; with `forks=False`, an error is injected in this process.

    Returns:
        How the act ended: "killed"; "failed" with one of the `expected` errors; or "ended" without an error, because it
        handled the error, or because it did not reach the operation.
    """
    if not forks and not fault.kills:
        try:
            act(Counter(fault, error))
        except expected:
            return "failed"
        return "ended"
    child = os.fork()
    if child == 0:
        _exit_with(act, Counter(fault, error), expected)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{fault}: signal {os.WTERMSIG(status)}"
        assert fault.kills, f"{fault}: it was killed"
        return "killed"
    code = os.waitstatus_to_exitcode(status)
    assert code in {ENDED, FAILED}, f"{fault}: exit code {code}; its traceback is above"
    return "failed" if code == FAILED else "ended"


def _exit_with(act: Callable[[Counter], object], counter: Counter, expected: tuple[type[Exception], ...]) -> None:
    """Runs the act, and ends this forked process with an exit code that says how the act ended.

    `os._exit` is used because exit handlers and threads belong to the parent process.
    """
    try:
        act(counter)
        code = ENDED
    except expected:
        code = FAILED
    except BaseException:  # noqa: BLE001 - told by the exit code
        traceback.print_exc()
        code = FELL
    sys.stderr.flush()
    os._exit(code)
