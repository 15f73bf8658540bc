"""Keeps the parts of an unfinished output in a folder beside it, from which the same command resumes.

The folder `OUT.parts` holds the files of the finished parts and `state.json`, which records the model, the input and
the options of the command. A command with another state is refused. The folder is deleted when the output is complete.
"""

import json
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from emocap_shards.local_files import locked, open_regular

from emocap_pretrain.bulk.new_file import disk_errors, writing_to
from emocap_pretrain.bulk.part_files import name_of
from emocap_pretrain.bulk.parts import OutputPart
from emocap_pretrain.errors import ConfigError

STATE = "state.json"
SCHEMA = 1
_LOCK = "lock"
_LOCK_WAIT_S = 2.0  # A process that was just killed may need a moment to release the lock.
_MOST_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class PartFolder:
    """Manages the folder of the parts of an output. A lock excludes all other processes."""

    path: Path

    def file(self, part: OutputPart) -> Path:
        return self.path / name_of(part.number)

    def missing(self, parts: Iterable[OutputPart]) -> list[OutputPart]:
        """Returns the parts that have no file yet."""
        return [part for part in parts if not self.file(part).exists()]

    def clear(self) -> None:
        """Deletes the state and then the files of all parts. So a folder without a state holds no valid part."""
        (self.path / STATE).unlink(missing_ok=True)
        for file in [*self.path.glob("part-*"), *self.path.glob(".part-*"), *self.path.glob(f".{STATE}*")]:
            file.unlink(missing_ok=True)

    def delete(self) -> None:
        """Deletes all files that this package has written into the folder, and the folder if it is then empty."""
        self.clear()
        (self.path / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # Somebody else may have put a file there.
            self.path.rmdir()


@contextmanager
def opened(out: Path, state: Mapping[str, Any], *, force: bool) -> Generator[PartFolder]:
    """Makes or opens the folder of the parts of `out`, and locks it for the `with` block.

    Args:
        out: The output.
        state: The model, the input and the options of the command, as JSON values.
        force: Whether existing parts are deleted, and an existing output may be replaced.

    Raises:
        ConfigError: If another process is writing the output; or, without `force`, if the output exists and the folder
            has no unfinished parts of it, or if the folder holds parts of another state or an unreadable state.
        StoreError: If the folder cannot be written.
    """
    folder = PartFolder(out.with_name(f"{out.name}.parts"))
    file = folder.path / STATE
    if out.exists() and not file.exists() and not force:
        raise ConfigError(f"{out} exists: choose another --out, or replace it with --force.")
    with ExitStack() as stack:
        with disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone(folder.path / _LOCK, out))
            if force or not file.exists():
                folder.clear()
            if file.exists():
                _require_equal(file, state, out)
            else:
                with writing_to(file) as temporary:
                    temporary.write_text(json.dumps({"schema": SCHEMA, **state}, indent=1), encoding="utf-8")
        yield folder


@contextmanager
def _alone(lock: Path, out: Path) -> Generator[None]:
    file = open_regular(lock, os.O_RDWR | os.O_CREAT, follow=False)
    try:
        if not locked(file, wait_s=_LOCK_WAIT_S):
            raise ConfigError(f"another process is writing {out}: wait for its end, or choose another --out.")
        yield
    finally:
        os.close(file)


def _require_equal(file: Path, state: Mapping[str, Any], out: Path) -> None:
    """Checks that the parts in the folder were computed with the same state.

    Raises:
        ConfigError: If the states differ, or if the file cannot be read.
    """
    try:
        with file.open("rb") as opened_file:
            found = cast("dict[str, Any]", json.loads(opened_file.read(_MOST_BYTES)))
        schema = found.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): start anew with --force.") from error
    wanted = json.loads(json.dumps(state))  # JSON turns tuples into lists.
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names or schema != SCHEMA:
        changes = ", ".join(_change(name, found.get(name), wanted[name]) for name in names) or f"schema {schema}"
        cure = "give the same arguments to resume, or start anew with --force"
        raise ConfigError(f"{out} is unfinished, and was begun with another {changes}: {cure}.")


def _change(name: str, before: Any, now: Any) -> str:
    """Returns the name of a value that has changed, with both values if they are numbers."""
    is_short = all(isinstance(each, int | float | None) for each in (before, now))
    return f"{name} ({before} and not {now})" if is_short else name
