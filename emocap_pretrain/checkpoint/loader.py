"""Downloads and verifies checkpoints, and chooses the one to resume from. This module never changes the store."""

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
from emocap_pretrain.checkpoint.manifest import Checkpoint, File, check_sizes, read_repeatedly
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.checkpoint.verify import is_intact
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import Status

DOWNLOADS = 4
ATTEMPTS = 3
MAX_VERIFYING_HOSTS = 3  # Hosts that read a file which one host finds damaged.
MAX_LISTED_FAULTS = 5

log = logging.getLogger(__name__)


@contextmanager
def downloaded(store: Store, checkpoint: Checkpoint, select: Callable[[str], bool]) -> Generator[Path]:
    """Yields a temporary folder with the selected files of a checkpoint, each of them verified.

    Args:
        store: The run's store.
        checkpoint: The checkpoint to read.
        select: Returns whether the file with this path is needed.

    Raises:
        CheckpointError: If a file is missing, or differs from its size or digest in the manifest.
    """
    with scratch() as folder:
        damaged = _fetch_all(store, checkpoint, [file for file in checkpoint.files if select(file.path)], folder)
        if damaged:
            raise CheckpointError(
                f"{store.url}/{checkpoint.folder}/{damaged[0].path} is missing or damaged: it is not what the manifest "
                f"of step {checkpoint.step} says. Take another step."
            )
        yield folder


class Resumed(NamedTuple):
    """Holds the checkpoint from which training continues.

    Args:
        checkpoint: The checkpoint, equal on all ranks.
        folder: Local folder with the files that this rank needs.
        refused: Save attempts of newer checkpoints whose files were found damaged; equal on all ranks, newest first.
    """

    checkpoint: Checkpoint
    folder: Path
    refused: tuple[str, ...] = ()


@dataclass(slots=True)
class _Refused:
    """Collects the checkpoints that are not used because they are damaged.

    Args:
        steps: For each such step, the fault.
        attempts: Save attempts of those whose manifest is intact and whose files are damaged.
    """

    steps: dict[int, str] = field(default_factory=dict[int, str])
    attempts: list[str] = field(default_factory=list[str])


@contextmanager
def resumable(store: Store, world: RankGroup, select: Callable[[Checkpoint, str], bool]) -> Generator[Resumed | None]:
    """Yields the newest checkpoint that is intact on every rank; None if the run has no checkpoint. A collective.

    A damaged checkpoint is skipped with a warning and stays in the store. A checkpoint is refused only if up to
    `MAX_VERIFYING_HOSTS` hosts find it damaged, so that one host with a broken disk or network cannot discard it.

    Args:
        store: The run's store.
        world: All ranks.
        select: Returns whether this rank needs the file with this path.

    Raises:
        CheckpointError: If there are checkpoints and all are refused; or if one host reads other bytes than another
            host. Then the message names the host.
    """
    verifiers = _verifying_ranks(world.gather(socket.gethostname()))
    refused_so_far = _Refused()
    with ExitStack() as stack:
        found = None
        while not found and (checkpoint := _newest_complete(store, world, verifiers, refused_so_far)):
            stack.close()  # Deletes the previous download, so that the next one has room on the local disk.
            folder = _download_on_all(stack, store, checkpoint, world, select, verifiers, refused_so_far)
            found = Resumed(checkpoint, folder, tuple(refused_so_far.attempts)) if folder else None
        if not found:
            world.run_on_main(partial(_confirm_none, store, refused_so_far), failing="no checkpoint could be read")
        yield found


def _verifying_ranks(hosts: Sequence[str]) -> tuple[int, ...]:
    """Returns the first rank of each host, for the first `MAX_VERIFYING_HOSTS` hosts. Rank 0 is one of these ranks."""
    first = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    return tuple(sorted(first.values())[:MAX_VERIFYING_HOSTS])


def _newest_complete(
    store: Store, world: RankGroup, verifiers: Sequence[int], refused_so_far: _Refused
) -> Checkpoint | None:
    """Returns the newest checkpoint whose manifest and file sizes at least one verifier finds right. A collective.

    Newer checkpoints are added to `refused_so_far`. The result is None if there is no such checkpoint.
    """
    scan = partial(_scan, store, frozenset(refused_so_far.steps)) if world.rank in verifiers else _do_nothing
    scans = [each for each in world.run_on_all(scan, failing="no checkpoint could be read") if each]
    newest = max((each.checkpoint for each in scans if each.checkpoint), key=_step_of, default=None)
    for step, fault in sorted({step: fault for each in scans for step, fault in each.faults}.items(), reverse=True):
        if newest is None or step > newest.step:
            _refuse(store, world, refused_so_far, step, fault)
    return newest


class _Scan(NamedTuple):
    """Holds the checkpoints that one host sees: the newest complete one, and the faults of newer ones by step."""

    checkpoint: Checkpoint | None
    faults: tuple[tuple[int, str], ...]


def _do_nothing() -> None: ...


def _step_of(checkpoint: Checkpoint) -> int:
    return checkpoint.step


def _scan(store: Store, refused: frozenset[int]) -> _Scan:
    faults: list[tuple[int, str]] = []
    listed = next(filter(None, read_repeatedly(partial(step_folders, store))), [])
    for folder in listed:
        if folder.manifest_bytes is None or folder.step in refused:
            continue
        checkpoint, wrong = check_sizes(store, folder)
        if checkpoint and not wrong:
            return _Scan(checkpoint, tuple(faults))
        faults.append((folder.step, _summary(wrong)))
    return _Scan(None, tuple(faults))


def _download_on_all(
    stack: ExitStack,
    store: Store,
    checkpoint: Checkpoint,
    world: RankGroup,
    select: Callable[[Checkpoint, str], bool],
    verifiers: Sequence[int],
    refused_so_far: _Refused,
) -> Path | None:
    """Downloads the files that each rank needs, and returns the local folder. A collective.

    If a file is damaged in the store, the checkpoint is added to `refused_so_far`, and all ranks return None.
    """
    failing = f"the checkpoint of step {checkpoint.step} could not be read"
    folder = Path()

    def fetch() -> tuple[str, list[File]]:
        nonlocal folder
        folder = stack.enter_context(scratch())
        files = [file for file in checkpoint.files if select(checkpoint, file.path)]
        return socket.gethostname(), _fetch_all(store, checkpoint, files, folder)

    answers = world.run_on_all(fetch, failing=failing)
    reports = [(rank, host, files) for rank, (host, files) in enumerate(answers) if files]
    if not reports:
        return folder
    rank, host, files = reports[0]
    # If another host reads the file correctly, the disk, memory or network of this host is at fault, not the store.
    verify = partial(is_intact, store, checkpoint, files[0]) if world.rank in verifiers else _do_nothing
    if any(world.run_on_all(verify, failing=failing)):
        raise CheckpointError(
            f"rank {rank} on {host} gets other bytes of {files[0].path} than the store holds: "
            "leave that host out and have its disk, memory and network checked."
        )
    refused_so_far.attempts.append(checkpoint.attempt)
    _refuse(store, world, refused_so_far, checkpoint.step, _summary([file.path for file in files]))
    return None


def _summary(paths: Sequence[str]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]


def _refuse(store: Store, world: RankGroup, refused_so_far: _Refused, step: int, fault: str) -> None:
    refused_so_far.steps[step] = fault
    if world.is_main:
        log.warning(
            "the checkpoint of step %d in %s is skipped and not deleted: %s is missing or damaged; "
            "`emocap checkpoints verify` reads it again",
            step,
            store.url,
            fault,
        )


def _confirm_none(store: Store, refused_so_far: _Refused) -> None:
    """Checks that the run has never had a checkpoint, because otherwise it must not begin at step 0.

    Raises:
        CheckpointError: If checkpoints were refused, or are not listed although an attempt reported one.
    """
    faults = "; ".join(
        f"step {step}: {fault}" for step, fault in list(refused_so_far.steps.items())[:MAX_LISTED_FAULTS]
    )
    lost = _reported(store)
    if faults:
        what = f"every checkpoint of the run at {store.url} is missing a file or damaged ({faults})"
    elif lost is not None:
        what = f"the run at {store.url} has committed a checkpoint of step {lost}, and none is listed now"
    else:
        return
    raise CheckpointError(
        f"{what}; nothing was deleted. Run `emocap checkpoints verify {store.url}`, preferably on another host, and "
        "restore the files; or begin anew with another url, or in this folder after you have deleted it."
    )


def _reported(store: Store) -> int | None:
    """Returns the step of the checkpoint that the newest attempt's status names.

    If that status names no checkpoint, older attempts are read. The result is None if no status names a checkpoint.
    """
    for number in reversed(attempts.numbers(store)):
        status = attempts.status(store, number)
        if isinstance(status, Status) and status.checkpoint is not None:
            return status.checkpoint
    return None


def _fetch_all(store: Store, checkpoint: Checkpoint, files: list[File], folder: Path) -> list[File]:
    """Downloads files, a few at a time, and returns those that are missing or damaged."""
    whole = concurrently(partial(_fetch, store, checkpoint, folder), files, at_once=DOWNLOADS) if files else []
    return [file for file, is_good in zip(files, whole, strict=True) if not is_good]


def _fetch(store: Store, checkpoint: Checkpoint, folder: Path, file: File) -> bool:
    """Downloads a file and returns whether it is intact. A file that is missing or damaged is read again."""
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        with suppress(NotFound):
            store.get_file(f"{checkpoint.folder}/{file.path}", target)
        if target.exists() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return True
    return False
