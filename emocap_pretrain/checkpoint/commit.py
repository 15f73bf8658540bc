"""One checkpoint, from every rank's files to the manifest.

An attempt that dies before its manifest stands is nobody's checkpoint: the files below its own prefix are swept later.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from emocap_shards.background import concurrently
from emocap_shards.errors import ConditionFailed, StoreError
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import folder_of, manifest_of, new_attempt, start_of
from emocap_pretrain.checkpoint.manifest import LARGEST_BYTES, Checkpoint, File, read
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.errors import CheckpointError, EmocapError, Superseded
from emocap_pretrain.starts import Start
from emocap_pretrain.world import World

UPLOADS = 4

log = logging.getLogger(__name__)
Value = TypeVar("Value")


def commit(
    store: Store,
    step: int,
    state: dict[str, Any],
    write: Callable[[Path], None],
    world: World,
    start: Start | None = None,
) -> Checkpoint:
    """Make a checkpoint of what `write` puts into a folder on each rank; a collective. All or none of it comes to be.

    Returns:
        The checkpoint that stands for this step: ours, or the whole one of another attempt that was there first.

    Raises:
        Superseded: If a newer start owns the run.
        CheckpointError: If some rank failed; it names the rank, and no manifest is written.
    """
    what = f"the checkpoint of step {step} was not saved"
    attempt = on_main(world, what, partial(_begin, start))
    files = [file for each in together(world, what, partial(_share, store, step, attempt, write)) for file in each]
    ordered = tuple(sorted(files, key=lambda file: file.path))
    checkpoint = Checkpoint(step, attempt, ordered, state, ranks=world.place.world, at=time.time())
    return on_main(world, what, partial(_conclude, store, checkpoint, start))


def together(world: World, what: str, act: Callable[[], Value]) -> list[Value]:
    """What `act` gives on every rank, in rank order; one rank's failure is every rank's error: `what`, rank, why."""
    value, error = None, None
    try:
        value = act()
    except Exception as caught:  # noqa: BLE001 - raised below, here and on every other rank
        error = caught
    answers: list[Any] = world.collect((value, error and _told(error)))
    for rank, (_, told) in enumerate(answers):
        if told:
            superseded, words = told
            raise (Superseded(words) if superseded else CheckpointError(f"{what}: rank {rank}: {words}")) from error
    return [value for value, _ in answers]


def on_main(world: World, what: str, act: Callable[[], Value]) -> Value:
    """What rank 0's `act` gives, on every rank; its failure too."""
    answer: Any = together(world, what, lambda: act() if world.is_main else None)[0]
    return answer


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(error: Exception) -> tuple[bool, str]:
    words = " ".join(str(error).split())
    known = isinstance(error, (EmocapError, StoreError, OSError)) and words
    return isinstance(error, Superseded), words if known else f"{type(error).__name__}: {words}"


def _begin(start: Start | None) -> str:
    if start:
        start.check()  # Before gigabytes travel; it counts before the manifest.
    return new_attempt(start.number if start else 0)


def _share(store: Store, step: int, attempt: str, write: Callable[[Path], None]) -> list[File]:
    """Write and upload this rank's files."""
    folder = f"{folder_of(step)}/{attempt}"
    with scratch() as local:
        write(local)
        paths = sorted(path for path in local.rglob("*") if path.is_file())

        def upload(path: Path) -> File:
            name = path.relative_to(local).as_posix()
            file = File(name, path.stat().st_size, sha256(path))
            store.put_file(f"{folder}/{name}", path)
            return file

        return concurrently(upload, paths, at_once=UPLOADS)


def _conclude(store: Store, checkpoint: Checkpoint, start: Start | None) -> Checkpoint:
    """Put the manifest; where a whole one stands already, that is the checkpoint of this step."""
    path, data = manifest_of(checkpoint.step), checkpoint.dump()
    if len(data) > LARGEST_BYTES:
        raise CheckpointError(f"the manifest of step {checkpoint.step} has {len(data)} bytes: keep less in its state.")
    if start:
        start.check()
    try:
        store.put_if_absent(path, data)
    except ConditionFailed:
        standing = read(store, checkpoint.step)
        if standing and standing.attempt == checkpoint.attempt:
            return standing  # Ours: the answer to it was lost.
        if standing:
            who = f"start {start_of(standing.attempt)}"
            log.warning("step %d of %s was committed by %s already: that one stands", standing.step, store.url, who)
            store.delete_tree(checkpoint.folder)
            return standing
        log.warning("%s/%s is damaged and is replaced", store.url, path)
        store.delete(path)
        store.put_if_absent(path, data)
    return checkpoint
