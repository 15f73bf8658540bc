"""The way back: from a manifest to verified files."""

import logging
import socket
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from emocap_shards.background import concurrently
from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.commit import on_main, sha256, together
from emocap_pretrain.checkpoint.layout import forget, step_folders
from emocap_pretrain.checkpoint.manifest import Checkpoint, File, is_readable, misfits, read
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.checkpoint.verify import is_whole
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.world import World

DOWNLOADS = 4
ATTEMPTS = 3

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


@contextmanager
def resumable(
    store: Store, world: World, wanted: Callable[[Checkpoint, str], bool]
) -> Generator[tuple[Checkpoint, Path] | None]:
    """The newest checkpoint that verifies on every rank, and a local folder with this rank's files; None without one.

    One that is damaged in the store is deleted, with a warning, and the one before it is tried.

    Args:
        store: The run's store.
        world: All ranks.
        wanted: Whether this rank needs the file of that path.

    Raises:
        CheckpointError: If a rank cannot read a checkpoint that is whole in the store; it names the rank and its host.
    """
    with ExitStack() as stack:
        found = None
        what = "no checkpoint could be read"
        while not found and (checkpoint := on_main(world, what, partial(_newest, store))):
            stack.close()  # What was downloaded of a damaged one takes no room any more.
            found = _taken(stack, store, checkpoint, world, wanted)
        yield found


def _newest(store: Store) -> Checkpoint | None:
    """The newest whose manifest stands whole and whose files have their sizes; damaged ones before it are deleted."""
    for folder in step_folders(store):
        if folder.manifest_bytes is None:
            continue
        checkpoint = read(store, folder.step) if is_readable(folder) else None
        faults = misfits(checkpoint, folder) if checkpoint else ["its manifest"]
        if checkpoint and not faults:
            return checkpoint
        _give_up(store, folder.step, faults)
    return None


def _taken(
    stack: ExitStack, store: Store, checkpoint: Checkpoint, world: World, wanted: Callable[[Checkpoint, str], bool]
) -> tuple[Checkpoint, Path] | None:
    """Download on every rank; None on all of them if a file is damaged in the store."""
    what = f"the checkpoint of step {checkpoint.step} could not be read"
    folder = Path()

    def fetch() -> tuple[str, list[File]]:
        nonlocal folder
        folder = stack.enter_context(scratch())
        files = [file for file in checkpoint.files if wanted(checkpoint, file.path)]
        return socket.gethostname(), _fetch_all(store, checkpoint, files, folder)

    answers = together(world, what, fetch)
    if not any(damaged for _, damaged in answers):
        return checkpoint, folder
    on_main(world, what, partial(_judge, store, checkpoint, answers))
    return None


def _judge(store: Store, checkpoint: Checkpoint, answers: Iterable[tuple[str, list[File]]]) -> None:
    """Delete what rank 0 finds damaged too. A rank whose disk or network changes bytes must not cost checkpoints."""
    for rank, (host, damaged) in enumerate(answers):
        if not damaged:
            continue
        if is_whole(store, checkpoint, damaged[0]):
            raise CheckpointError(
                f"rank {rank} on {host} gets other bytes of {damaged[0].path} than the store holds: "
                "leave that host out and have its disk, memory and network checked."
            )
        _give_up(store, checkpoint.step, [file.path for file in damaged])
        return


def _give_up(store: Store, step: int, faults: list[str]) -> None:
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    log.warning("checkpoint of step %d in %s is not whole and is deleted: %s%s", step, store.url, faults[0], more)
    forget(store, step)


def _fetch_all(store: Store, checkpoint: Checkpoint, files: list[File], folder: Path) -> list[File]:
    """Download, a few at a time; returns those that are missing or damaged."""
    whole = concurrently(partial(_fetch, store, checkpoint, folder), files, at_once=DOWNLOADS) if files else []
    return [file for file, is_good in zip(files, whole, strict=True) if not is_good]


def _fetch(store: Store, checkpoint: Checkpoint, folder: Path, file: File) -> bool:
    """Whether the file arrived whole; a bit that flips on the way is worth another attempt."""
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        try:
            store.get_file(f"{checkpoint.folder}/{file.path}", target)
        except NotFound:
            return False
        if target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return True
    return False
