"""Commits one checkpoint: every rank uploads its files, then rank 0 puts the manifest.

A checkpoint exists as soon as its manifest exists. If a save ends before that, its files belong to no checkpoint, and
retention deletes them later.

The order of the writes guarantees that no incomplete checkpoint exists (decision 3). Each save uploads its files to a
folder of its own, so an upload never changes a committed checkpoint. The manifest is put last. Directly before that,
rank 0 checks that no newer attempt of the run has begun. The new manifest does not replace that of an intact
checkpoint. If a process is killed between two writes, the run has the previous checkpoint or the new one, but never a
part of one. Tests kill a process at every operation of the store.
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
    replaced_manifest_of,
    run_attempt_of,
)
from emocap_pretrain.checkpoint.manifest import LARGEST_BYTES, Checkpoint, File, lost_files, read
from emocap_pretrain.checkpoint.scratch import scratch
from emocap_pretrain.checkpoint.verify import damaged_files
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.attempts import Attempt

UPLOADS = 4  # Files of a rank that are uploaded at the same time.
MAX_RACES = 3  # How often a manifest is put if other processes change it at the same time.

log = logging.getLogger(__name__)


def commit(
    store: Store,
    step: int,
    state: dict[str, Any],
    write: Callable[[Path], None],
    world: RankGroup,
    run_attempt: Attempt,
) -> Checkpoint:
    """Uploads the files of all ranks, and then puts the manifest, so that no incomplete checkpoint exists.

    All ranks must call this function. It has three collectives: rank 0 chooses the name of the folder, all ranks upload
    their files, and rank 0 puts the manifest. If one of these fails on a rank, every rank raises an error.

    Args:
        store: The run's store.
        step: Optimizer steps done.
        state: JSON values for the training loop; those of rank 0 are stored.
        write: Writes this rank's files into the empty folder whose path it gets. No two ranks may write a file of the
            same name. The folder is deleted after the upload.
        world: All ranks, in a group whose timeout is longer than an upload.
        run_attempt: This attempt of the run, which saves the checkpoint.

    Returns:
        The checkpoint of this step: the new one, or an intact one that another attempt committed first.

    Raises:
        Superseded: If a newer attempt owns the run.
        CheckpointError: If a rank failed. The message names the rank, and no manifest is written.
    """
    failing = f"the checkpoint of step {step} was not saved"
    attempt = world.run_on_main(partial(_new_attempt_name, run_attempt), failing=failing)
    shares = world.run_on_all(partial(_write_and_upload, store, step, attempt, write), failing=failing)
    files = [file for share in shares for file in share]
    ordered = tuple(sorted(files, key=lambda file: file.path))
    # Every rank makes this value, with its own time. Only that of rank 0 is put and returned to all ranks.
    checkpoint = Checkpoint(step, attempt, ordered, state, ranks=world.world_size, at=time.time())
    return world.run_on_main(partial(_put_manifest, store, checkpoint, run_attempt), failing=failing)


def sha256(path: Path) -> str:
    """Returns the SHA-256 digest of a local file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_attempt_name(run_attempt: Attempt) -> str:
    run_attempt.check()  # This avoids a useless upload. The decisive check comes right before the manifest.
    return new_attempt(run_attempt.number)


def _write_and_upload(store: Store, step: int, attempt: str, write: Callable[[Path], None]) -> list[File]:
    """Writes this rank's files to the local disk, uploads them, and returns their entries for the manifest.

    `write` writes the files into a local folder, and `attempt` is the name of the folder in the store.
    """
    folder = f"{folder_of(step)}/{attempt}"
    with scratch() as local:
        write(local)
        paths = sorted(path for path in local.rglob("*") if path.is_file())

        def upload(path: Path) -> File:
            name = path.relative_to(local).as_posix()
            # The digest is that of the local file. If bytes change on the way to the store, a reader notices it.
            file = File(name, path.stat().st_size, sha256(path))
            store.put_file(f"{folder}/{name}", path)
            return file

        return concurrently(upload, paths, at_once=UPLOADS)


def _put_manifest(store: Store, checkpoint: Checkpoint, run_attempt: Attempt) -> Checkpoint:
    """Puts the manifest and returns the checkpoint of the step.

    If another attempt has already committed an intact checkpoint of that step, that one is kept and returned.
    """
    path, data = manifest_of(checkpoint.step), checkpoint.dump()
    if len(data) > LARGEST_BYTES:
        raise CheckpointError(f"the manifest of step {checkpoint.step} has {len(data)} bytes: keep less in its state.")
    _require_files(store, checkpoint)
    for _ in range(MAX_RACES):
        # The decisive check comes directly before the write. A newer attempt that begins between the two does not see
        # this checkpoint. It then commits the same step again, and finds this manifest (docs/checkpoints.md).
        run_attempt.check()
        try:
            store.put_if_absent(path, data)
        except ConditionFailed:
            resolved = _resolve_conflict(store, checkpoint, data)
            if resolved:
                return resolved
        else:
            return checkpoint
    raise CheckpointError(f"{store.url}/{path} changes while it is read: end the other writers of this run.")


def _require_files(store: Store, checkpoint: Checkpoint) -> None:
    """Checks that the store lists all uploaded files.

    A process of an older attempt may have deleted files while they were uploaded. Only names and sizes are compared.

    Raises:
        CheckpointError: If a file that was uploaded is not in the store any more.
    """
    if lost := lost_files(store, checkpoint):
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} is not committed: {len(lost)} of its {len(checkpoint.files)} "
            f"files, such as {lost[0]}, are gone from {store.url}/{checkpoint.folder} since their upload; another "
            "process deletes files there: end it first."
        )


def _resolve_conflict(store: Store, checkpoint: Checkpoint, data: bytes) -> Checkpoint | None:
    """Decides between the new checkpoint and one that is already committed at the same step; returns the one to keep.

    If the committed checkpoint is damaged, the new one replaces it. `data` is the manifest of the new checkpoint. The
    result is None if the manifest in the store has changed meanwhile; the caller then tries again.
    """
    present = read(store, checkpoint.step)
    if present and present.attempt == checkpoint.attempt:
        return present  # Our own: the manifest was put, and the response to the request was lost.
    # Every byte is read: from now on the run would rely on a checkpoint that another attempt has written.
    faults = damaged_files(store, present) if present else [MANIFEST]
    if present and not faults:
        log.warning(
            "step %d of %s was already committed by attempt %s: that checkpoint is kept, and this one is dropped",
            present.step,
            store.url,
            run_attempt_of(present.attempt),
        )
        store.delete_tree(checkpoint.folder)
        return present
    return checkpoint if _replace_damaged(store, checkpoint.step, data, present, faults) else None


def _replace_damaged(store: Store, step: int, data: bytes, present: Checkpoint | None, faults: list[str]) -> bool:
    """Replaces the manifest of a damaged checkpoint by a new one, and keeps the bytes of the old one in another file.

    Args:
        store: The run's store.
        step: The step of the manifest.
        data: The new manifest.
        present: The damaged checkpoint, as it was read before; None if its manifest could not be read.
        faults: Damaged files of that checkpoint, for the log.

    Returns:
        Whether the manifest was replaced. It is not replaced if it has changed since `present` was read.
    """
    path = manifest_of(step)
    try:
        # Another attempt may have repaired the manifest since `present` was read. `version` belongs to the bytes that
        # are compared here, and `put_if_match` replaces only these bytes.
        old, version = store.read_versioned(path, limit_bytes=LARGEST_BYTES)
        present_now = Checkpoint.parse(old)
        if (present_now and present_now.attempt) != (present and present.attempt):
            return False
        # The copy is put first. A crash after it leaves a copy beside the manifest, and the next try writes it again.
        kept = replaced_manifest_of(step, hashlib.sha256(old).hexdigest())
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
