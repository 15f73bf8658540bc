"""Reads and checks the manifests of checkpoints.

A manifest names the folder of one save attempt, and the size and SHA-256 of each file in this folder. A manifest is not
trusted, because a stranger may have written it: its size is bounded, its own digest must be right, every field is
validated, and no path may lead out of the folder. The digests reveal accidental damage. They do not protect against
somebody who may write to the run's folder.

For an absent, damaged or truncated manifest, the readers return None, because the caller then looks at an older
checkpoint. If a manifest is undamaged but this version cannot read it, they raise an error, because the user has to
decide what to do.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from emocap_shards.errors import NotFound, StoreError
from emocap_shards.store import Store
from emocap_shards.store.protocol import checked
from pydantic import AfterValidator, NonNegativeInt, PositiveInt, StringConstraints, TypeAdapter, ValidationError

from emocap_pretrain.checkpoint.layout import MANIFEST, StepFolder, folder_of, manifest_of, step_folder, step_folders
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder.storage import read_repeatedly

SCHEMA = 2  # A manifest of another schema is refused by name and not upgraded.
LARGEST_BYTES = 64 << 20  # Some 150 bytes a file: enough for tens of thousands of ranks.


def _inside(path: str) -> str:
    """Returns the path unchanged. Raises ValueError if it leads out of its folder, or cannot be the path of a file."""
    # The path becomes a part of a local path when a checkpoint is downloaded, so it must not lead out of that folder.
    try:
        checked(path)
    except StoreError as error:
        raise ValueError(str(error)) from error
    if "\\" in path or not path.isprintable() or path.endswith("/"):
        raise ValueError(f"{path!r} is not the name of a file")
    return path


@dataclass(frozen=True, slots=True)
class File:
    """Describes one file of a checkpoint; `path` is relative to the folder of its save attempt."""

    path: Annotated[str, AfterValidator(_inside)]
    bytes: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Describes a committed checkpoint with the fields of its manifest.

    Args:
        step: Optimizer steps done.
        attempt: Name of the folder of the save attempt, which begins with the number of the run attempt.
        files: The files of all ranks, in the order of their paths.
        state: JSON values of the training loop; see `checkpoint.state.TrainingState`.
        ranks: Number of ranks that saved the checkpoint.
        at: When the checkpoint was committed, in seconds since 1970.
        schema: Schema version of the manifest.
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
        """Returns the path of the folder with the files, relative to the run's folder."""
        return f"{folder_of(self.step)}/{self.attempt}"

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the manifest. It identifies all files too, because the manifest has their digests."""
        return hashlib.sha256(self.dump()).hexdigest()

    @property
    def bytes(self) -> int:
        """Returns the size of all files together."""
        return sum(file.bytes for file in self.files)

    # In the scope of this class `bytes` is the property above, so annotations quote the name of the built-in type.
    def dump(self) -> "bytes":
        """Returns the manifest as JSON. Its key `sha256` holds the digest of all other keys and values for `parse`.

        Equal checkpoints have equal bytes, because the keys are sorted. So the property `digest`, which is the SHA-256
        of all these bytes, identifies a checkpoint.
        """
        body = asdict(self)
        return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})

    @classmethod
    def parse(cls, data: "bytes") -> "Checkpoint | None":
        """Returns the checkpoint from the bytes that `dump` wrote; None if their content does not match its digest.

        Raises:
            CheckpointError: If the manifest is undamaged, but has another schema version, or a field that is not valid,
                such as the path of a file that is not inside of the manifest's own folder.
        """
        # The digest is computed from the parsed tree, written again as `dump` writes it.
        try:
            tree: dict[str, Any] = dict(json.loads(data))
            recorded, computed = tree.pop("sha256", None), hashlib.sha256(_json(tree)).hexdigest()
        except (ValueError, TypeError, RecursionError):
            return None
        if recorded != computed:
            return None
        # The bytes are those that somebody has written. So what is wrong from here on is not damage, but an error.
        if tree.get("schema") != SCHEMA:
            raise CheckpointError(
                f"checkpoint schema {tree.get('schema')!r} is not {SCHEMA}: use the version that wrote it."
            )
        try:
            return _FORM.validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"a manifest says {where}={str(first['input'])[:80]!r}, which emocap never writes: "
                "find out who wrote it, or delete it."
            ) from error


def read(store: Store, step: int) -> Checkpoint | None:
    """Returns the checkpoint of a step; None if several readings in a row find its manifest absent or damaged.

    Raises:
        CheckpointError: If `Checkpoint.parse` refuses the manifest. The message begins with the manifest's URL.
    """
    return next(filter(None, read_repeatedly(lambda: _read_once(store, step))), None)


def _read_once(store: Store, step: int) -> Checkpoint | None:
    path = manifest_of(step)
    try:
        found = Checkpoint.parse(store.read(path, limit_bytes=LARGEST_BYTES))
    except NotFound:
        return None
    except CheckpointError as error:
        raise CheckpointError(f"{store.url}/{path}: {error}") from error
    # A manifest that was copied into the folder of another step is not the manifest of that step.
    return found if found and found.step == step else None


def committed(store: Store) -> list[Checkpoint]:
    """Returns those checkpoints of the run that have an undamaged manifest, newest first. No other file is verified.

    Example:
        store = open_store("s3://bucket/runs/faces")
        newest = committed(store)[0]
        newest.step, newest.bytes

    Raises:
        CheckpointError: If `Checkpoint.parse` refuses a manifest.
    """
    return [found for folder in step_folders(store) if (found := read_listed(store, folder))]


def newest(store: Store) -> Checkpoint | None:
    """Returns the newest checkpoint whose manifest can be read; None if there is none.

    Newer checkpoints whose manifest cannot be read are skipped without a warning. This function is for readers that
    need any recent checkpoint. A run that resumes uses `loader.resumable`, which verifies the files and reports what it
    skips.
    """
    for folder in step_folders(store):
        with suppress(CheckpointError):
            if checkpoint := read_listed(store, folder):
                return checkpoint
    return None


def newest_complete(store: Store) -> Checkpoint | None:
    """Returns the newest checkpoint that has all its files, with the sizes in its manifest; None if there is none.

    Other checkpoints are skipped without a warning, as in `newest`. The files are listed but not read.
    """
    for folder in step_folders(store):
        with suppress(CheckpointError):
            checkpoint, lost = check_sizes(store, folder)
            if checkpoint and not lost:
                return checkpoint
    return None


def read_listed(store: Store, folder: StepFolder) -> Checkpoint | None:
    """Reads the checkpoint of a listed step with `read`. The result is None if its manifest is not listed or too large.

    A manifest is too large if it has more than `LARGEST_BYTES` bytes, because this package never writes such a
    manifest.
    """
    size = folder.manifest_bytes
    return None if size is None or size > LARGEST_BYTES else read(store, folder.step)


def mismatched_files(checkpoint: Checkpoint, folder: StepFolder) -> list[str]:
    """Returns the paths of the checkpoint's files that are missing or have another size than the manifest says."""
    present = folder.attempts.get(checkpoint.attempt, {})
    return [file.path for file in checkpoint.files if present.get(file.path) != file.bytes]


def lost_files(store: Store, checkpoint: Checkpoint) -> list[str]:
    """Returns the paths of the checkpoint's files that are missing or have another size than the manifest says.

    The files of the step are listed several times, because one listing may be stale. If one listing has all files, the
    result is empty. Otherwise the result holds the files that are missing or wrong in the last listing.
    """
    lost: list[str] = []
    for listed in read_repeatedly(lambda: step_folder(store, checkpoint.step)):
        if not (lost := mismatched_files(checkpoint, listed)):
            break
    return lost


def check_sizes(store: Store, folder: StepFolder) -> tuple[Checkpoint | None, list[str]]:
    """Reads the manifest of a listed step, and compares the file sizes in it with the listing. The files are not read.

    The manifest and the listing count as wrong only after several readings.

    Returns:
        The checkpoint, or None if its manifest is damaged; and the paths of the files that are missing or have another
        size.

    Raises:
        CheckpointError: If `Checkpoint.parse` refuses the manifest.
    """
    checkpoint = read_listed(store, folder)
    if checkpoint is None:
        return None, [MANIFEST]
    return checkpoint, lost_files(store, checkpoint) if mismatched_files(checkpoint, folder) else []


def _json(tree: dict[str, Any]) -> "bytes":
    return json.dumps(tree, indent=1, sort_keys=True).encode()


_FORM = TypeAdapter(Checkpoint)
