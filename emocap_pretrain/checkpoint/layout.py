"""Where the parts of a checkpoint lie below a run's folder.

checkpoints/step-00000080/00003-<attempt>/...     files of all ranks, uploaded by start 3
checkpoints/step-00000080/manifest.json           put last, once
checkpoints/step-00000080/replaced-<digest>.json  a damaged manifest, after an attempt committed the step again
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emocap_shards.store import Entry, Store

FOLDER = "checkpoints"
MANIFEST, REPLACED = "manifest.json", "replaced-"
ENGINE, WEIGHTS, TOKENIZER = "engine", "model.safetensors", "tokenizer.json"

_OBJECT = re.compile(rf"{FOLDER}/step-(\d{{8,}})/(.+)")
_ATTEMPT = re.compile(r"(\d{5,})-\w+")


@dataclass(frozen=True, slots=True)
class StepFolder:
    """What one listing shows of a step: the size of the manifest, if there is one, and of every attempt's files."""

    step: int
    manifest_bytes: int | None
    attempts: Mapping[str, Mapping[str, int]]


def step_folders(store: Store) -> list[StepFolder]:
    """Every step of which the store holds a manifest or files of an attempt, newest first; other files are ignored."""
    return _grouped(store.list(FOLDER))


def step_folder(store: Store, step: int) -> StepFolder:
    """A new listing of one step alone."""
    return next(iter(_grouped(store.list(folder_of(step)))), StepFolder(step, None, {}))


def steps_listed(store: Store) -> list[int]:
    """Steps with a manifest, damaged or not, in either of two listings: one alone may be stale."""
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
    return f"{FOLDER}/step-{step:08d}"


def manifest_of(step: int) -> str:
    return f"{folder_of(step)}/{MANIFEST}"


def replaced_of(step: int, digest: str) -> str:
    """Where a manifest that was replaced is kept; `digest` is that of its bytes."""
    return f"{folder_of(step)}/{REPLACED}{digest[:16]}.json"


def new_attempt(start: int) -> str:
    """A name that nobody else takes, and that says which start of the run makes the attempt."""
    return f"{start:05d}-{uuid.uuid4().hex}"


def start_of(attempt: str) -> int | None:
    """The number of the start that made the attempt; None where `new_attempt` did not give the name."""
    match = _ATTEMPT.fullmatch(attempt)
    return int(match[1]) if match else None


def forget(store: Store, step: int) -> None:
    """Delete a checkpoint: first the manifest, so that no reader finds one whose files are half gone."""
    store.delete(manifest_of(step))
    store.delete_tree(folder_of(step))
