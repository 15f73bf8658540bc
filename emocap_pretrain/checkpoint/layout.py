"""Where the parts of a checkpoint lie below a run's folder.

checkpoints/step-00000080/00003-<attempt>/...     files of all ranks, uploaded by start 3
checkpoints/step-00000080/manifest.json           put last, once
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from emocap_shards.store import Store

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
ENGINE, WEIGHTS, TOKENIZER = "engine", "model.safetensors", "tokenizer.json"

_OBJECT = re.compile(rf"{FOLDER}/step-(\d+)/(.+)")
_ATTEMPT = re.compile(r"(\d+)-")


@dataclass(frozen=True, slots=True)
class StepFolder:
    """What one listing shows of a step: bytes of the manifest, if there is one, and of every attempt's files."""

    step: int
    manifest_bytes: int | None
    attempts: Mapping[str, Mapping[str, int]]


def step_folders(store: Store) -> list[StepFolder]:
    """Every step of which anything lies in the store, newest first."""
    manifests: dict[int, int] = {}
    attempts: dict[int, dict[str, dict[str, int]]] = {}
    for entry in store.list(FOLDER):
        match = _OBJECT.fullmatch(entry.path)
        if match is None:
            continue
        step, rest = int(match[1]), match[2]
        if rest == MANIFEST:
            manifests[step] = entry.size
        else:
            attempt, _, path = rest.partition("/")
            attempts.setdefault(step, {}).setdefault(attempt, {})[path] = entry.size
    steps = sorted(manifests.keys() | attempts.keys(), reverse=True)
    return [StepFolder(step, manifests.get(step), attempts.get(step, {})) for step in steps]


def folder_of(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def manifest_of(step: int) -> str:
    return f"{folder_of(step)}/{MANIFEST}"


def new_attempt(start: int) -> str:
    """A name that nobody else takes, and that says which start of the run makes the attempt."""
    return f"{start:05d}-{uuid.uuid4().hex}"


def start_of(attempt: str) -> int:
    """The number of the start that made the attempt; 0 where the name does not say."""
    match = _ATTEMPT.match(attempt)
    return int(match[1]) if match else 0


def forget(store: Store, step: int) -> None:
    """Delete a checkpoint: first the manifest, so that it is never half there and believed."""
    store.delete(manifest_of(step))
    store.delete_tree(folder_of(step))
