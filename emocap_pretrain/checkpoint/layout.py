"""Defines where the parts of a checkpoint lie below a run's folder.

checkpoints/step-00000080/00003-<random>/...      files of all ranks, uploaded by attempt 3 of the run
checkpoints/step-00000080/manifest.json           put last, once
checkpoints/step-00000080/replaced-<digest>.json  a damaged manifest, after the step was committed again

The folder `00003-<random>` holds one save attempt. An attempt of the run that saves the same step twice makes two such
folders.

These are the other modules of `checkpoint/`, in the order in which they handle a checkpoint: `saver` runs a save in a
thread, `commit` uploads the files and puts the manifest, `manifest` reads the manifest, `loader` chooses and downloads
the checkpoint to resume from, `verify` compares every byte, and `retention` deletes old checkpoints. A checkpoint
exists if its manifest exists (decision 3). Reading a checkpoint deletes nothing (decision 21).
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emocap_shards.store import Entry, Store

FOLDER = "checkpoints"
MANIFEST, REPLACED = "manifest.json", "replaced-"
ENGINE, WEIGHTS, TOKENIZER = "engine", "model.safetensors", "tokenizer.json"
HEADER = "emocap"  # The key of an engine file whose JSON holds the schema and the offset of each slice.
AVERAGE = "ema"  # The name of the moving average of the weights among the optimizer's states in the engine files.

# Only files in the folder of a step count. Other files in `checkpoints/` are ignored.
_OBJECT = re.compile(rf"{FOLDER}/step-(\d{{8,}})/(.+)")
_ATTEMPT = re.compile(r"(\d{5,})-\w+")
# The paths in the folder of a step that a save can make.
_OURS = re.compile(rf"{re.escape(MANIFEST)}|{REPLACED}[0-9a-f]{{16}}\.json|{_ATTEMPT.pattern}/.+")


@dataclass(frozen=True, slots=True)
class StepFolder:
    """Holds the files of one step, as a listing of the store shows them.

    Args:
        step: Optimizer steps done.
        manifest_bytes: Size of the manifest; None if the listing does not contain a manifest.
        attempts: For each save attempt, the size of each of its files in bytes, by the file's path in the attempt's
            folder.
    """

    step: int
    manifest_bytes: int | None
    attempts: Mapping[str, Mapping[str, int]]


def step_folders(store: Store) -> list[StepFolder]:
    """Returns the files of each step that has a manifest, a save attempt or both, newest first. Ignores other files.

    The store is listed once, and the listing may be stale. If a file is not listed, a caller must ask the store again
    before it relies on the absence of this file.
    """
    return _grouped(store.list(FOLDER))


def step_folder(store: Store, step: int) -> StepFolder:
    """Lists the files of one step; the result is empty if the store has no files of that step."""
    return next(iter(_grouped(store.list(folder_of(step)))), StepFolder(step, None, {}))


def steps_listed(store: Store) -> list[int]:
    """Returns the steps that have a manifest, in ascending order; the manifest may be damaged.

    The store is listed twice, because one listing may be stale.
    """
    twice = step_folders(store) + step_folders(store)
    return sorted({each.step for each in twice if each.manifest_bytes is not None})


def _grouped(entries: Iterable[Entry]) -> list[StepFolder]:
    manifests: dict[int, int] = {}
    attempts: dict[int, dict[str, dict[str, int]]] = {}
    for entry in entries:
        match = _OBJECT.fullmatch(entry.path)
        if match is None:
            continue
        step, rest = int(match[1]), match[2]
        if rest == MANIFEST:
            manifests[step] = entry.size
        elif "/" in rest:
            attempt, _, path = rest.partition("/")
            attempts.setdefault(step, {}).setdefault(attempt, {})[path] = entry.size
    steps = sorted(manifests.keys() | attempts.keys(), reverse=True)
    return [StepFolder(step, manifests.get(step), attempts.get(step, {})) for step in steps]


def folder_of(step: int) -> str:
    """Returns the path of the folder of a step, relative to the run's folder."""
    # Eight digits make most listings alphabetical. Nothing relies on it: `_grouped` sorts steps as numbers.
    return f"{FOLDER}/step-{step:08d}"


def manifest_of(step: int) -> str:
    """Returns the path of a step's manifest."""
    return f"{folder_of(step)}/{MANIFEST}"


def replaced_manifest_of(step: int, digest: str) -> str:
    """Returns the path at which a replaced manifest is kept; `digest` is the SHA-256 of the manifest's bytes."""
    return f"{folder_of(step)}/{REPLACED}{digest[:16]}.json"


def new_attempt(run_attempt: int) -> str:
    """Returns a unique name for the folder of a save attempt; it begins with the number of the run attempt."""
    return f"{run_attempt:05d}-{uuid.uuid4().hex}"


def run_attempt_of(attempt: str) -> int | None:
    """Returns the number of the run attempt with which the name of a save attempt begins; None for any other name."""
    match = _ATTEMPT.fullmatch(attempt)
    return int(match[1]) if match else None


def delete_checkpoint(store: Store, step: int) -> None:
    """Deletes a checkpoint and all other save attempts of its step. Files that no save has made are kept.

    The manifest is deleted first, so that no reader finds a manifest without its files. If the process crashes before
    all files are deleted, the remaining files count as those of unfinished save attempts, which `retention` deletes
    later.
    """
    folder = folder_of(step)
    found = [entry.path.removeprefix(f"{folder}/") for entry in store.list(folder)]
    ours = [path for path in found if _OURS.fullmatch(path)]
    store.delete(manifest_of(step))
    if len(ours) == len(found):
        store.delete_tree(folder)  # On a disk this also deletes the folder itself, and hidden files of the store.
        return
    for name in {path.partition("/")[0] for path in ours}:
        delete = store.delete_tree if _ATTEMPT.fullmatch(name) else store.delete
        delete(f"{folder}/{name}")
