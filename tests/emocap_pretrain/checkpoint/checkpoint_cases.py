"""Holds helpers of the tests of checkpoints: files to save, stores that fail, and views of the result."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.layout import TOKENIZER, WEIGHTS
from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.saver import Saver
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.attempts import Attempt, newest

ALONE = RankGroup(Rank(), "cpu", None)
FILES = ("engine/rank-00000.safetensors", "engine/rank-00001.safetensors", WEIGHTS, TOKENIZER)
WRITES = {"put", "put_file", "put_if_absent", "put_if_match", "delete", "delete_tree"}
READS = {"list", "read", "read_versioned", "exists", "get_file", "read_range"}


@dataclass
class FailingStore:
    """Forwards calls to a store, and raises `error` at a write to a path that ends in `at`."""

    store: Store
    at: str
    error: BaseException

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put_file(self, path: str, local_path: Path) -> None:
        self._fail_at(path)
        self.store.put_file(path, local_path)

    def put_if_absent(self, path: str, data: bytes) -> None:
        self._fail_at(path)
        self.store.put_if_absent(path, data)

    def _fail_at(self, path: str) -> None:
        if path.endswith(self.at):
            raise self.error


@dataclass
class KillingStore:
    """Forwards calls to a store, and kills this process with SIGKILL before or after call number `at`, from 0 on."""

    store: Store
    at: int
    before: bool
    done: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.store, name)
        if name not in WRITES | READS:
            return operation

        def counted(*arguments: Any, **options: Any) -> Any:
            is_fatal = len(self.done) == self.at
            self.done.append(name)
            if is_fatal and self.before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*arguments, **options)
            if is_fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted


@dataclass
class UnconditionalStore:
    """Forwards calls to a store, but ignores the conditions of writes, as some S3 servers do."""

    store: Store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def honours_conditions(self) -> bool:
        return False

    def put_if_absent(self, path: str, data: bytes) -> None:
        self.store.put(path, data)


class Killed(BaseException):
    """Is an exception that no handler of the product catches."""


def content(step: int, name: str) -> bytes:
    return f"{name} of step {step} ".encode() * 20


def writer(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content(step, name))

    return write


def attempt_of(store: Store) -> Attempt:
    """Returns the newest attempt of the run, or attempt 0 if the run has none."""
    return Attempt(store, newest(store))


def saver_of(store: Store, world: RankGroup = ALONE, **options: Any) -> Saver:
    """Returns a saver of the newest attempt, which keeps many checkpoints if no other retention is given."""
    return Saver(store, world, **{"run_attempt": attempt_of(store), "retention": Retention(100), **options})


def saved(store: Store, *steps: int) -> list[Checkpoint]:
    return [commit(store, step, {"cursor": step}, writer(step), ALONE, attempt_of(store)) for step in steps]


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(_: Checkpoint, __: str) -> bool:
    return True


def resumed_step(store: Store) -> int | None:
    """Returns the step that an attempt would resume from; asserts that every byte of its checkpoint is right."""
    with resumable(store, ALONE, everything) as found:
        if found is None:
            return None
        assert read(found[1]) == {name: content(found[0].step, name) for name in FILES}
        return found[0].step


def steps(store: Store) -> list[int]:
    return [each.step for each in committed(store)]


def objects(store: Store) -> dict[str, bytes]:
    """Returns every object of the run with its bytes."""
    return {entry.path: store.read(entry.path) for entry in store.list()}


def flip(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


def damage(store: Store, path: str, how: str) -> None:
    data = store.read(path)
    store.delete(path)
    if how != "missing":
        store.put(path, flip(data) if how == "flipped" else data[:-1])
