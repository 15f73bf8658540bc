"""What a manifest says of a checkpoint, and which manifests are believed."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from emocap_shards.errors import NotFound, StoreError
from emocap_shards.store import Store
from emocap_shards.store.protocol import checked
from pydantic import AfterValidator, NonNegativeInt, PositiveInt, StringConstraints, TypeAdapter, ValidationError

from emocap_pretrain.checkpoint.layout import MANIFEST, StepFolder, folder_of, manifest_of, step_folder, step_folders
from emocap_pretrain.errors import CheckpointError

SCHEMA = 2
LARGEST_BYTES = 64 << 20  # Some 150 bytes a file: enough for tens of thousands of ranks.
READINGS, PAUSE_S = 3, 0.05  # A manifest or a listing that looks wrong is read again so often, with a pause between.
Value = TypeVar("Value")


def _inside(path: str) -> str:
    """Only a path that stays inside its attempt."""
    try:
        checked(path)
    except StoreError as error:
        raise ValueError(str(error)) from error
    if "\\" in path or not path.isprintable() or path.endswith("/"):
        raise ValueError(f"{path!r} is no name of a file")
    return path


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint; `path` is relative to its attempt."""

    path: Annotated[str, AfterValidator(_inside)]
    bytes: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint: what its manifest says.

    `state` is plain JSON of the loop's own; `ranks` have saved it, at `at`, seconds since 1970.
    """

    step: NonNegativeInt
    attempt: Annotated[str, AfterValidator(_inside), StringConstraints(pattern=r"^[^/]+$")]
    files: tuple[File, ...]
    state: dict[str, Any]
    ranks: PositiveInt = 1
    at: float = 0.0
    schema: int = SCHEMA

    @property
    def folder(self) -> str:
        return f"{folder_of(self.step)}/{self.attempt}"

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of every byte of the checkpoint."""
        return hashlib.sha256(self.dump()).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def dump(self) -> "bytes":
        body = asdict(self)
        return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})

    @classmethod
    def parse(cls, data: "bytes") -> "Checkpoint | None":
        """What `dump` gave; None where a byte of it has changed or is missing.

        Raises:
            CheckpointError: If it is whole, and another version of this package wrote it, or it names files that are
                not inside its own folder.
        """
        try:
            tree: dict[str, Any] = dict(json.loads(data))
            told, found = tree.pop("sha256", None), hashlib.sha256(_json(tree)).hexdigest()
        except (ValueError, TypeError, RecursionError):
            return None
        if told != found:
            return None
        if tree.get("schema") != SCHEMA:
            raise CheckpointError(
                f"checkpoint schema {tree.get('schema')!r} is not {SCHEMA}: use the matching version."
            )
        try:
            return _FORM.validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"a manifest says {where}={str(first['input'])[:80]!r}, which no checkpoint of ours does: "
                "find out who wrote it, or delete it."
            ) from error


def read(store: Store, step: int) -> Checkpoint | None:
    """The manifest of a step; None where several readings in a row find it absent or damaged.

    Raises:
        CheckpointError: As `Checkpoint.parse` does, with the place.
    """
    return next(filter(None, again(lambda: _read_once(store, step))), None)


def again(look: Callable[[], Value]) -> Iterator[Value]:
    """What `look` returns, up to `READINGS` times: the caller stops at the first value that it believes."""
    for reading in range(READINGS):
        if reading:
            time.sleep(PAUSE_S)
        yield look()


def _read_once(store: Store, step: int) -> Checkpoint | None:
    path = manifest_of(step)
    try:
        found = Checkpoint.parse(store.read(path, limit_bytes=LARGEST_BYTES))
    except NotFound:
        return None
    except CheckpointError as error:
        raise CheckpointError(f"{store.url}/{path}: {error}") from error
    return found if found and found.step == step else None


def committed(store: Store) -> list[Checkpoint]:
    """Every checkpoint of the run whose manifest stands whole, newest first; their files are not verified here."""
    found = (read(store, each.step) for each in step_folders(store) if is_readable(each))
    return [each for each in found if each]


def newest(store: Store) -> Checkpoint | None:
    """The newest checkpoint whose manifest can be read. What is wrong with a newer one, the resume says."""
    for folder in step_folders(store):
        with suppress(CheckpointError):
            checkpoint = read(store, folder.step) if is_readable(folder) else None
            if checkpoint:
                return checkpoint
    return None


def is_readable(folder: StepFolder) -> bool:
    """Whether there is a manifest of a size that we would write."""
    return folder.manifest_bytes is not None and folder.manifest_bytes <= LARGEST_BYTES


def misfits(checkpoint: Checkpoint, folder: StepFolder) -> list[str]:
    """Paths of the checkpoint's files that are missing or have another size than the manifest says."""
    present = folder.attempts.get(checkpoint.attempt, {})
    return [file.path for file in checkpoint.files if present.get(file.path) != file.bytes]


def examine(store: Store, folder: StepFolder) -> tuple[Checkpoint | None, list[str]]:
    """The manifest of a listed step, and what is wrong with it: no file is read, sizes are compared.

    What looks wrong is listed and read again before it is believed to be wrong.

    Returns:
        The checkpoint where its manifest is whole, and the names of the files that are missing or have another size.

    Raises:
        CheckpointError: As `read` does.
    """
    checkpoint = read(store, folder.step) if is_readable(folder) else None
    faults = misfits(checkpoint, folder) if checkpoint else []
    if checkpoint is None:
        return None, [MANIFEST]
    if faults:
        for listed in again(lambda: step_folder(store, folder.step)):
            if not (faults := misfits(checkpoint, listed)):
                break
    return checkpoint, faults


def _json(tree: dict[str, Any]) -> "bytes":
    return json.dumps(tree, indent=1, sort_keys=True).encode()


_FORM = TypeAdapter(Checkpoint)
