"""Reads checkpoints back: from a manifest to verified files. Nothing here changes the store."""

import logging
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from emocap_shards.background import concurrently
from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.commit import sha256
from emocap_pretrain.checkpoint.layout import step_folders
from emocap_pretrain.checkpoint.manifest import Checkpoint, File, again, examine
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.checkpoint.verify import is_whole
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import Status

DOWNLOADS = 4
ATTEMPTS = 3
JUDGES = 3  # Hosts that read what another one finds damaged.
NAMED = 5

log = logging.getLogger(__name__)


@contextmanager
def downloaded(store: Store, checkpoint: Checkpoint, wanted: Callable[[str], bool]) -> Generator[Path]:
    """A temporary folder with those files of the checkpoint that are wanted, each verified.

    Raises:
        CheckpointError: If a file is missing or is not what the manifest says.
    """
    with scratch() as folder:
        damaged = _fetch_all(store, checkpoint, [file for file in checkpoint.files if wanted(file.path)], folder)
        if damaged:
            raise CheckpointError(
                f"{store.url}/{checkpoint.folder}/{damaged[0].path} is missing or damaged: it is not what the manifest "
                f"of step {checkpoint.step} says. Take another step."
            )
        yield folder


class Resumed(NamedTuple):
    """The checkpoint that training continues from, the local folder with this rank's files, and what was refused.

    `refused` holds the attempts whose checkpoints were found damaged on the way: equal on all ranks, newest first.
    """

    checkpoint: Checkpoint
    folder: Path
    refused: tuple[str, ...] = ()


@dataclass(slots=True)
class _Refusals:
    """Checkpoints that this opening does not believe, with the reason: by step, and by attempt where it is known."""

    steps: dict[int, str] = field(default_factory=dict[int, str])
    attempts: list[str] = field(default_factory=list[str])


@contextmanager
def resumable(store: Store, world: RankGroup, wanted: Callable[[Checkpoint, str], bool]) -> Generator[Resumed | None]:
    """The newest checkpoint that verifies on every rank, with this rank's files; None where the run has none.

    A checkpoint that is damaged is left as it is and skipped with a warning: nothing in the store is changed here,
    whatever was read. Several hosts judge before a checkpoint is refused.

    Args:
        store: The run's store.
        world: All ranks.
        wanted: Whether this rank needs the file of that path.

    Raises:
        CheckpointError: If there are checkpoints and every one is refused; or if a host reads other bytes than another
            host does, with the name of that host.
    """
    judges = _judges(world.gather(socket.gethostname()))
    refusals = _Refusals()
    with ExitStack() as stack:
        found = None
        while not found and (checkpoint := _newest(store, world, judges, refusals)):
            stack.close()  # Makes room on the local disk for the next one.
            folder = _taken(stack, store, checkpoint, world, wanted, judges, refusals)
            found = Resumed(checkpoint, folder, tuple(refusals.attempts)) if folder else None
        if not found:
            world.run_on_main(partial(_confirm_none, store, refusals), failing="no checkpoint could be read")
        yield found


def _judges(hosts: Sequence[str]) -> tuple[int, ...]:
    """The first rank of each of the first few hosts; rank 0 is one of them."""
    first = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    return tuple(sorted(first.values())[:JUDGES])


def _newest(store: Store, world: RankGroup, judges: Sequence[int], refusals: _Refusals) -> Checkpoint | None:
    """The newest checkpoint that some judge finds complete by manifest and sizes; what none does is refused."""
    look = partial(_look, store, frozenset(refusals.steps)) if world.rank in judges else _no_look
    looks = [each for each in world.run_on_all(look, failing="no checkpoint could be read") if each]
    newest = max((each.checkpoint for each in looks if each.checkpoint), key=_step_of, default=None)
    for step, fault in sorted({step: fault for each in looks for step, fault in each.faults}.items(), reverse=True):
        if newest is None or step > newest.step:
            _refuse(store, world, refusals, step, fault)
    return newest


class _Look(NamedTuple):
    """What one host sees: the newest complete checkpoint, and what is wrong with newer ones."""

    checkpoint: Checkpoint | None
    faults: tuple[tuple[int, str], ...]


def _no_look() -> None: ...


def _step_of(checkpoint: Checkpoint) -> int:
    return checkpoint.step


def _look(store: Store, refused: frozenset[int]) -> _Look:
    faults: list[tuple[int, str]] = []
    listed = next(filter(None, again(partial(step_folders, store))), [])
    for folder in listed:
        if folder.manifest_bytes is None or folder.step in refused:
            continue
        checkpoint, wrong = examine(store, folder)
        if checkpoint and not wrong:
            return _Look(checkpoint, tuple(faults))
        faults.append((folder.step, _named(wrong)))
    return _Look(None, tuple(faults))


def _taken(
    stack: ExitStack,
    store: Store,
    checkpoint: Checkpoint,
    world: RankGroup,
    wanted: Callable[[Checkpoint, str], bool],
    judges: Sequence[int],
    refusals: _Refusals,
) -> Path | None:
    """Download on every rank; None on all of them if a file is damaged in the store."""
    what = f"the checkpoint of step {checkpoint.step} could not be read"
    folder = Path()

    def fetch() -> tuple[str, list[File]]:
        nonlocal folder
        folder = stack.enter_context(scratch())
        files = [file for file in checkpoint.files if wanted(checkpoint, file.path)]
        return socket.gethostname(), _fetch_all(store, checkpoint, files, folder)

    answers = world.run_on_all(fetch, failing=what)
    reports = [(rank, host, files) for rank, (host, files) in enumerate(answers) if files]
    if not reports:
        return folder
    rank, host, files = reports[0]
    # Those that can read the file clear the checkpoint of a suspicion that one host's disk, memory or network raised.
    judge = partial(is_whole, store, checkpoint, files[0]) if world.rank in judges else _no_look
    if any(world.run_on_all(judge, failing=what)):
        raise CheckpointError(
            f"rank {rank} on {host} gets other bytes of {files[0].path} than the store holds: "
            "leave that host out and have its disk, memory and network checked."
        )
    refusals.attempts.append(checkpoint.attempt)
    _refuse(store, world, refusals, checkpoint.step, _named([file.path for file in files]))
    return None


def _named(paths: Sequence[str]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]


def _refuse(store: Store, world: RankGroup, refusals: _Refusals, step: int, fault: str) -> None:
    refusals.steps[step] = fault
    if world.is_main:
        log.warning(
            "the checkpoint of step %d in %s is skipped, and stays where it is: %s is missing or damaged; "
            "`emocap checkpoints verify` reads it again",
            step,
            store.url,
            fault,
        )


def _confirm_none(store: Store, refusals: _Refusals) -> None:
    """Only a run that never had a checkpoint begins at step 0.

    Raises:
        CheckpointError: If checkpoints were refused, or are not listed although an attempt reported one.
    """
    told = "; ".join(f"step {step}: {fault}" for step, fault in list(refusals.steps.items())[:NAMED])
    lost = _reported(store)
    if told:
        what = f"every checkpoint of the run at {store.url} is missing a file or damaged ({told})"
    elif lost is not None:
        what = f"the run at {store.url} has committed a checkpoint of step {lost}, and none is listed now"
    else:
        return
    raise CheckpointError(
        f"{what}; nothing was deleted. Run `emocap checkpoints verify {store.url}`, preferably on another host, and "
        "restore the files; or begin anew with another url, or in this folder after you have deleted it."
    )


def _reported(store: Store) -> int | None:
    """The step of the checkpoint that the newest status with one names."""
    for number in reversed(attempts.numbers(store)):
        status = attempts.status(store, number)
        if isinstance(status, Status) and status.checkpoint is not None:
            return status.checkpoint
    return None


def _fetch_all(store: Store, checkpoint: Checkpoint, files: list[File], folder: Path) -> list[File]:
    """Download, a few at a time; returns those that are missing or damaged."""
    whole = concurrently(partial(_fetch, store, checkpoint, folder), files, at_once=DOWNLOADS) if files else []
    return [file for file, is_good in zip(files, whole, strict=True) if not is_good]


def _fetch(store: Store, checkpoint: Checkpoint, folder: Path, file: File) -> bool:
    """Whether the file arrived whole; what is missing or changed at one reading is read again."""
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        with suppress(NotFound):
            store.get_file(f"{checkpoint.folder}/{file.path}", target)
        if target.exists() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return True
    return False
