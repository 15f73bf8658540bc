"""Checkpoints that are whole or absent.

    <run>/checkpoints/step-00000080/<attempt>/...     files of all ranks, uploaded first
    <run>/checkpoints/step-00000080/manifest.json     sizes and digests of them; put last, once

A reader believes a manifest whose files verify, and nothing else. DeepSpeed's part of the state is unpickled on load,
so it is read from the run's own URL only, after its digests hold (integrity, not authenticity: guard who may write
there). Evaluation and export read `model.safetensors`.
"""

import hashlib
import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emocap_shards.errors import NotFound, StoreError
from emocap_shards.store import Store

from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.world import World

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
ENGINE, WEIGHTS, TOKENIZER = "engine", "model.safetensors", "tokenizer.json"
SCHEMA = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint; `path` is relative to its attempt."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint: what its manifest says. `state` is plain JSON of the loop's own."""

    step: int
    attempt: str
    files: tuple[File, ...]
    state: dict[str, Any]
    schema: int = SCHEMA

    @property
    def folder(self) -> str:
        return f"{_folder(self.step)}/{self.attempt}"

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of every byte of the checkpoint."""
        return hashlib.sha256(self.dump()).hexdigest()

    def dump(self) -> bytes:
        body = asdict(self)
        return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})

    @classmethod
    def parse(cls, data: bytes) -> "Checkpoint | None":
        """What `dump` gave; None where a byte of it has changed or is missing.

        Raises:
            CheckpointError: If another version of this package wrote it.
        """
        try:
            tree: dict[str, Any] = dict(json.loads(data))
        except (ValueError, TypeError):
            return None
        if tree.pop("sha256", None) != hashlib.sha256(_json(tree)).hexdigest():
            return None
        if tree["schema"] != SCHEMA:
            raise CheckpointError(f"checkpoint schema {tree['schema']} is not {SCHEMA}: use the matching version.")
        tree["files"] = tuple(File(**file) for file in tree["files"])
        return cls(**tree)


def committed(store: Store) -> list[Checkpoint]:
    """Every checkpoint of the run whose manifest stands whole, newest first; their files are not verified here."""
    found = (Checkpoint.parse(store.read(path)) for path in _manifests(store))
    return sorted(filter(None, found), key=lambda each: -each.step)


@contextmanager
def downloaded(store: Store, checkpoint: Checkpoint, wanted: Callable[[str], bool]) -> Generator[Path]:
    """A temporary folder with those files of the checkpoint that are wanted, each verified.

    Raises:
        CheckpointError: If a file is missing or is not what the manifest says.
    """
    with tempfile.TemporaryDirectory(prefix="emocap-checkpoint-") as name:
        for file in checkpoint.files:
            if wanted(file.path):
                _fetch(store, checkpoint, file, Path(name) / file.path)
        yield Path(name)


def save(store: Store, step: int, state: dict[str, Any], write: Callable[[Path], None], world: World) -> Checkpoint:
    """Commit what `write` puts into a folder on each rank. All ranks call it; all or none of it comes to be.

    Args:
        store: The run's store.
        step: Optimizer steps done.
        state: JSON values for the loop, equal on all ranks.
        write: Writes this rank's files; collective calls inside are fine.
        world: All ranks.

    Raises:
        CheckpointError: If some rank could not upload; it names the rank, and no manifest is written.
    """
    attempt = world.share(uuid.uuid4().hex)
    folder = f"{_folder(step)}/{attempt}"
    with tempfile.TemporaryDirectory(prefix="emocap-checkpoint-") as name:
        write(Path(name))
        files = _gathered(world, lambda: _upload(store, folder, Path(name)))
    checkpoint = Checkpoint(step, attempt, tuple(sorted(files, key=lambda file: file.path)), state)
    _together(world, lambda: store.put_if_absent(_manifest_of(step), checkpoint.dump()))
    return checkpoint


def forget(store: Store, step: int) -> None:
    """Delete a checkpoint: first the manifest, so that it is never half there and believed."""
    store.delete(_manifest_of(step))
    store.delete_tree(_folder(step))


def retain(store: Store, *, keep_last: int, keep_every: int | None) -> None:
    """Delete checkpoints beyond the newest `keep_last` that are no multiple of `keep_every`, and unfinished ones."""
    found = committed(store)
    steps = [checkpoint.step for checkpoint in found]
    kept = set(steps[:keep_last]) | {step for step in steps if keep_every and step % keep_every == 0}
    for step in _steps_present(store) - kept:
        forget(store, step)
    for checkpoint in found:
        if checkpoint.step in kept:
            _forget_other_attempts(store, checkpoint)


def _forget_other_attempts(store: Store, checkpoint: Checkpoint) -> None:
    """What an attempt at the same step that was cut off has left."""
    own = (f"{checkpoint.folder}/", _manifest_of(checkpoint.step))
    for entry in store.list(_folder(checkpoint.step)):
        if not entry.path.startswith(own):
            store.delete(entry.path)


def _manifests(store: Store) -> list[str]:
    return [entry.path for entry in store.list(FOLDER) if entry.path.endswith(f"/{MANIFEST}")]


def _steps_present(store: Store) -> set[int]:
    return {_step_of(entry.path) for entry in store.list(FOLDER)}


def _step_of(path: str) -> int:
    return int(path.split("/")[1].removeprefix("step-"))


def _folder(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def _manifest_of(step: int) -> str:
    return f"{_folder(step)}/{MANIFEST}"


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True).encode()


def _upload(store: Store, folder: str, local: Path) -> list[File]:
    files: list[File] = []
    for path in sorted(each for each in local.rglob("*") if each.is_file()):
        relative = path.relative_to(local).as_posix()
        files.append(File(relative, path.stat().st_size, _sha256(path)))
        store.put_file(f"{folder}/{relative}", path)
    return files


def _fetch(store: Store, checkpoint: Checkpoint, file: File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path = f"{checkpoint.folder}/{file.path}"
    try:
        store.get_file(path, target)
    except NotFound as error:
        raise CheckpointError(
            f"{store.url}/{path} is missing, though the manifest of step {checkpoint.step} names it."
        ) from error
    if _sha256(target) != file.sha256:
        raise CheckpointError(f"{store.url}/{path} is damaged: its SHA-256 is not the one in the manifest.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gathered(world: World, act: Callable[[], list[File]]) -> Iterable[File]:
    """Every rank's files, once all ranks have acted; one rank's failure is all ranks' error."""
    try:
        mine: tuple[list[File], str] = (act(), "")
    except (StoreError, OSError) as error:
        mine = ([], str(error))
    answers = world.collect(mine)
    for rank, (_, error) in enumerate(answers):
        if error:
            raise CheckpointError(f"rank {rank} could not save its part of the checkpoint: {error}")
    return [file for files, _ in answers for file in files]


def _together(world: World, act: Callable[[], None]) -> None:
    """Rank 0 acts; all ranks learn how it went."""

    def once() -> list[File]:
        if world.is_main:
            act()
        return []

    _gathered(world, once)


@contextmanager
def resumable(store: Store, world: World) -> Generator[tuple[Checkpoint, Path] | None]:
    """The newest checkpoint that verifies on every rank, with its training state in a local folder; None without one.

    One that does not verify is deleted, with a warning, and the one before it is tried.
    """
    with ExitStack() as stack:
        yield next(
            (
                found
                for each in world.share(_committed_on_main(store, world))
                if (found := _try(stack, store, each, world))
            ),
            None,
        )


def _committed_on_main(store: Store, world: World) -> list[Checkpoint]:
    """The committed ones, on rank 0; a damaged manifest, which would be in the way of a new one, is deleted."""
    if not world.is_main:
        return []
    found = committed(store)
    believed = {_manifest_of(each.step) for each in found}
    for path in _manifests(store):
        if path not in believed:
            log.warning("%s/%s is damaged; its checkpoint is deleted", store.url, path)
            forget(store, _step_of(path))
    return found


def _try(stack: ExitStack, store: Store, checkpoint: Checkpoint, world: World) -> tuple[Checkpoint, Path] | None:
    """Download on every rank; None on all of them if one found it damaged."""
    folder, damage, trouble = Path(), "", ""
    try:
        folder = stack.enter_context(downloaded(store, checkpoint, lambda path: world.is_main or path != WEIGHTS))
    except CheckpointError as caught:
        damage = str(caught)
    except (StoreError, OSError) as caught:
        trouble = str(caught)
    answers = world.collect((damage, trouble))
    for rank, (_, trouble) in enumerate(answers):
        # A store that does not answer or a full disk says nothing against the checkpoint: it stays.
        if trouble:
            raise CheckpointError(f"rank {rank} cannot read the checkpoint of step {checkpoint.step}: {trouble}")
    damages = [damage for damage, _ in answers if damage]
    if not damages:
        return checkpoint, folder
    log.warning("checkpoint of step %d is not whole and is deleted: %s", checkpoint.step, damages[0])
    if world.is_main:
        forget(store, checkpoint.step)
    return None
