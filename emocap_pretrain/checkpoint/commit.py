"""One checkpoint, from every rank's files to the manifest.

Files whose attempt ended before it put a manifest belong to no checkpoint; retention deletes them later.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from emocap_shards.background import concurrently
from emocap_shards.errors import ConditionFailed, NotFound
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import (
    MANIFEST,
    folder_of,
    manifest_of,
    new_attempt,
    replaced_of,
    start_of,
    step_folder,
)
from emocap_pretrain.checkpoint.manifest import LARGEST_BYTES, Checkpoint, File, again, misfits, read
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.checkpoint.verify import damaged_files
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.attempts import Attempt

UPLOADS = 4
RACES = 3  # Attempts at a manifest that others write at the same time.

log = logging.getLogger(__name__)


def commit(
    store: Store,
    step: int,
    state: dict[str, Any],
    write: Callable[[Path], None],
    world: RankGroup,
    start: Attempt | None = None,
) -> Checkpoint:
    """Make a checkpoint of what `write` puts into a folder on each rank; a collective. All or none of it comes to be.

    Returns:
        The checkpoint of this step: ours, or the whole one of another attempt that was there first.

    Raises:
        Superseded: If a newer start owns the run.
        CheckpointError: If some rank failed; it names the rank, and no manifest is written.
    """
    what = f"the checkpoint of step {step} was not saved"
    attempt = world.run_on_main(partial(_begin, start), failing=what)
    shares = world.run_on_all(partial(_share, store, step, attempt, write), failing=what)
    files = [file for share in shares for file in share]
    ordered = tuple(sorted(files, key=lambda file: file.path))
    checkpoint = Checkpoint(step, attempt, ordered, state, ranks=world.world_size, at=time.time())
    return world.run_on_main(partial(_conclude, store, checkpoint, start), failing=what)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _begin(start: Attempt | None) -> str:
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


def _conclude(store: Store, checkpoint: Checkpoint, start: Attempt | None) -> Checkpoint:
    """Put the manifest. Where another attempt's whole checkpoint has this step, that one is the checkpoint."""
    path, data = manifest_of(checkpoint.step), checkpoint.dump()
    if len(data) > LARGEST_BYTES:
        raise CheckpointError(f"the manifest of step {checkpoint.step} has {len(data)} bytes: keep less in its state.")
    _require_files(store, checkpoint)
    for _ in range(RACES):
        if start:
            start.check()
        try:
            store.put_if_absent(path, data)
        except ConditionFailed:
            found = _met(store, checkpoint, data)
            if found:
                return found
        else:
            return checkpoint
    raise CheckpointError(f"{store.url}/{path} changes while it is read: end the other writers of this run.")


def _require_files(store: Store, checkpoint: Checkpoint) -> None:
    """Raises:
    CheckpointError: If a file that was uploaded is not in the store any more; a listing that lacks it is read again.
    """
    lost: list[str] = []
    for listed in again(lambda: step_folder(store, checkpoint.step)):
        if not (lost := misfits(checkpoint, listed)):
            return
    raise CheckpointError(
        f"the checkpoint of step {checkpoint.step} is not committed: {len(lost)} of its {len(checkpoint.files)} files, "
        f"such as {lost[0]}, are gone from {store.url}/{checkpoint.folder} since their upload; somebody else deletes "
        "there: end that first."
    )


def _met(store: Store, checkpoint: Checkpoint, data: bytes) -> Checkpoint | None:
    """The checkpoint of a step that already has a manifest; None where that changed meanwhile, so that we try again."""
    present = read(store, checkpoint.step)
    if present and present.attempt == checkpoint.attempt:
        return present  # Ours: the answer to our request was lost.
    faults = damaged_files(store, present) if present else [MANIFEST]
    if present and not faults:
        log.warning(
            "step %d of %s was committed by attempt %s already: that checkpoint is kept, and this one is dropped",
            present.step,
            store.url,
            start_of(present.attempt),
        )
        store.delete_tree(checkpoint.folder)
        return present
    return checkpoint if _replaced(store, checkpoint.step, data, present, faults) else None


def _replaced(store: Store, step: int, data: bytes, present: Checkpoint | None, faults: list[str]) -> bool:
    """Put our manifest in the place of a damaged one, whose bytes are kept; whether it was still the one we judged."""
    path = manifest_of(step)
    try:
        old, version = store.read_versioned(path, limit_bytes=LARGEST_BYTES)
        present_now = Checkpoint.parse(old)
        if (present_now and present_now.attempt) != (present and present.attempt):
            return False
        kept = replaced_of(step, hashlib.sha256(old).hexdigest())
        store.put(kept, old)
        store.put_if_match(path, data, version)
    except (ConditionFailed, NotFound):
        return False
    log.warning(
        "the checkpoint of step %d in %s was damaged (%s): a new one replaces it, and its manifest is kept as %s",
        step,
        store.url,
        faults[0],
        kept,
    )
    return True
