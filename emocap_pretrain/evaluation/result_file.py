"""Defines the file that `emocap evaluate --save` writes and `emocap compare` reads.

It holds the results of one model with what was found for each sample, so that models that were evaluated on different
days or machines can be compared sample by sample. It is JSON with a schema version, as the documents of a run are
(`run_folder/storage.py`). Somebody else may have written such a file: its size, numbers and texts have bounds, and
nothing in it is opened or executed.
"""

import base64
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from emocap_shards.store import open_store
from emocap_shards.store.folder import FolderStore
from pydantic import Field, StringConstraints

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder.documents import Moment
from emocap_pretrain.run_folder.outcomes import FoundExample, Outcomes, RankOutcomes
from emocap_pretrain.run_folder.results import Count, TaskResult
from emocap_pretrain.run_folder.samples import Key, Name, Samples
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable, read

LIMIT_BYTES = 1 << 26  # Classes need about 20 bytes for each face; the ranks of all caption parts a further 160.
MOST_THUMBNAILS, LARGEST_THUMBNAIL = 200, 20_000
MOST_FACES, MOST_SENTENCES, MOST_PATCHES = 12, 10, 64  # With attention maps: faces, sentences of each, rows or columns.

Thumbnail = Annotated[str, StringConstraints(pattern=r"^/9j/[A-Za-z0-9+/=]*$", max_length=LARGEST_THUMBNAIL)]
"""A JPEG in base64; all of them begin with the same four characters."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """Says which model was evaluated.

    Attributes:
        name: Name of the run or model.
        address: The folder, URL or name of the model, without secrets.
        step: Step of the checkpoint; None if the model has no checkpoint.
        weights: Which weights of the checkpoint were evaluated, as a text for readers, such as "moving average of the
            weights"; "raw" if the run keeps no average. Empty for a model of another library.
        digest: SHA-256 digest of weights, structure and tokenizer.
        run_id: MLflow's id of the run; empty if there is none.
    """

    name: Name
    address: Annotated[str, Field(max_length=4096)] = ""
    step: Count | None = None
    weights: Name = ""
    digest: Name = ""
    run_id: Name = ""

    def title(self) -> str:
        """Returns a title for readers: the name, the step, and which weights were evaluated."""
        step = "" if self.step is None else f", step {self.step:,}"
        return f"{self.name}{step}{f', {self.weights}' if self.weights else ''}"


@dataclass(frozen=True, slots=True)
class SavedTask:
    """Holds the result of a task, and what was found for each sample.

    Attributes:
        result: The result without outcomes, samples and examples.
        samples: The index in `ResultFile.samples` of the samples to which the outcomes refer; None if there are no
            outcomes.
        outcomes: What was found for each sample.
        found: Some queries with their closest candidates, as examples for readers.
    """

    result: TaskResult
    samples: Annotated[int, Field(ge=0, lt=1000)] | None = None
    outcomes: tuple[Outcomes, ...] = ()
    found: tuple[FoundExample, ...] = ()


Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Row = Annotated[tuple[Share, ...], Field(min_length=1, max_length=MOST_PATCHES)]


@dataclass(frozen=True, slots=True)
class SavedMap:
    """Holds the attention map of a sentence about a face.

    Attributes:
        sentence: The sentence.
        weights: The weight of each patch, row after row.

    Raises:
        ValueError: If the rows have different lengths.
    """

    sentence: Annotated[str, Field(max_length=4000)]
    weights: Annotated[tuple[Row, ...], Field(min_length=1, max_length=MOST_PATCHES)]

    def __post_init__(self) -> None:
        if len(set(map(len, self.weights))) > 1:
            raise ValueError("the rows of an attention map have different lengths")


@dataclass(frozen=True, slots=True)
class SavedFace:
    """Holds the attention maps of a sample. `ResultFile.thumbnails` has the small image of this sample."""

    key: Key
    maps: Annotated[tuple[SavedMap, ...], Field(min_length=1, max_length=MOST_SENTENCES)]


@dataclass(frozen=True, slots=True)
class ResultFile:
    """Holds the content of a file of results.

    Attributes:
        model: The model.
        tasks: The results of each task on each dataset or benchmark.
        at: When the content was put together, in seconds since 1970.
        samples: The samples to which outcomes refer: an entry for each dataset or benchmark.
        evaluation: The settings of the evaluation, without secrets.
        thumbnails: Small images of samples by their keys, for the examples and the attention maps; empty unless the
            user has asked for them.
        faces: Attention maps of some samples; empty without thumbnails, and if the model has no maps.
        missing: The benchmarks that the user has named and that have no result, each with the reason.
        made_by: Distinguishes this file from other JSON files.

    Raises:
        ValueError: If outcomes are empty, or refer to samples that do not exist.
    """

    model: EvaluatedModel
    tasks: tuple[SavedTask, ...]
    made_by: Literal["emocap evaluate"]
    at: Moment = 0.0
    samples: tuple[Samples, ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    thumbnails: Annotated[Mapping[Key, Thumbnail], Field(max_length=MOST_THUMBNAILS)] = field(
        default_factory=dict[str, str]
    )
    faces: Annotated[tuple[SavedFace, ...], Field(max_length=MOST_FACES)] = ()
    missing: Annotated[tuple[Annotated[str, Field(max_length=4000)], ...], Field(max_length=1000)] = ()

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task.samples is None and not task.outcomes:
                continue
            if task.samples is None or task.samples >= len(self.samples):
                raise ValueError(f"the outcomes of {task.result.task} have no samples")
            for outcomes in task.outcomes:
                if outcomes.rows and max(outcomes.rows) >= len(self.samples[task.samples]):
                    raise ValueError(f"an outcome of {task.result.task} has no sample")
                if not outcomes.rows and not (isinstance(outcomes, RankOutcomes) and outcomes.keys):
                    raise ValueError(f"the outcomes of {task.result.task} are empty")

    @classmethod
    def of(
        cls,
        model: EvaluatedModel,
        results: Sequence[TaskResult],
        evaluation: Mapping[str, Any],
        thumbnails: Mapping[str, str] | None = None,
        faces: Sequence[SavedFace] = (),
        *,
        missing: Sequence[str] = (),
    ) -> "ResultFile":
        """Returns the content of a file with these results. Samples that several tasks share are stored once.

        Args:
            model: The model.
            results: The results of the tasks.
            evaluation: The settings of the evaluation, without secrets.
            thumbnails: Small images of samples, as JPEGs in base64, by the keys of the samples.
            faces: The attention maps of some samples with a small image.
            missing: The benchmarks without a result, each with the reason; long reasons are cut.
        """
        samples: list[Samples] = []
        tasks: list[SavedTask] = []
        for result in results:
            place = None
            if result.scored_samples is not None:
                if not any(each is result.scored_samples for each in samples):
                    samples.append(result.scored_samples)
                place = next(at for at, each in enumerate(samples) if each is result.scored_samples)
            tasks.append(SavedTask(result.scores_alone(), place, result.outcomes, result.found))
        return cls(
            model,
            tuple(tasks),
            "emocap evaluate",
            time.time(),
            tuple(samples),
            evaluation,
            dict(thumbnails or {}),
            tuple(faces),
            tuple(each[:4000] for each in missing),
        )

    def results(self) -> tuple[TaskResult, ...]:
        """Returns the results of the tasks with their outcomes, samples and examples, as `of` has received them."""
        return tuple(
            replace(
                task.result,
                outcomes=task.outcomes,
                scored_samples=None if task.samples is None else self.samples[task.samples],
                found=task.found,
            )
            for task in self.tasks
        )


# Schema 2 has further kinds of outcomes: those of captions, of attention maps and of losses.
RESULT_FILE = DocumentKind(ResultFile, (lambda body: body, lambda body: body), limit_bytes=LIMIT_BYTES, indent=None)


def load(address: str) -> ResultFile:
    """Reads a file that `emocap evaluate --save` has written.

    Args:
        address: Path or URL of the file.

    Raises:
        ConfigError: If `address` does not name a file, if there is no such file, or if it is not a valid file of
            results.
        StoreError: If the store does not answer.
    """
    folder, name = _split(address)
    found = read(open_store(folder), name, RESULT_FILE)
    if found is None:
        raise ConfigError(f"{address}: there is no such file; `emocap evaluate RUN --save FILE.json` writes one.")
    if isinstance(found, Unreadable):
        raise ConfigError(f"{address} is not a file of `emocap evaluate --save` that can be used: {found.reason}.")
    return found


def check_place(address: str) -> None:
    """Checks that `save` can write to an address. A command calls this before the evaluation.

    Only the place of a local file is checked; no request is sent to a server.

    Raises:
        ConfigError: If the address does not name a file, or a local file cannot be written.
        StoreError: If there is no store for the address.
    """
    folder, name = _split(address)
    store = open_store(folder)
    if not isinstance(store, FolderStore):
        return
    root = Path(store.root)
    existing = next(each for each in (root, *root.parents) if each.exists())  # `save` makes the folders below it.
    if (root / name).is_dir() or not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise ConfigError(f"--save {address}: it cannot be written; give a file in a folder that you may write.")


def save(address: str, file: ResultFile) -> None:
    """Writes a file of results, and replaces an existing file.

    Args:
        address: Path or URL of the file. Its name must have a suffix, such as .json.
        file: The content.

    Raises:
        ConfigError: If `load` would refuse the file: it would be larger than `LIMIT_BYTES`, or contains a text or a
            number outside of the bounds; or if `address` does not name a file. Nothing is written then.
        StoreError: If the store cannot write the file.
    """
    folder, name = _split(address)
    data = RESULT_FILE.dump(file)
    if len(data) > LIMIT_BYTES:
        raise ConfigError(
            f"--save {address}: {sum(map(len, file.samples)):,} samples need {len(data):,} bytes, and at "
            f"most {LIMIT_BYTES:,} are read: evaluate fewer benchmarks or tasks at once."
        )
    try:
        RESULT_FILE.parse(data)
    except ValueError as error:
        raise ConfigError(f"--save {address}: the results do not fit into the file ({error}).") from error
    open_store(folder).put(name, data)


def jpeg_text(jpeg: bytes) -> str | None:
    """Returns a JPEG in base64, as `ResultFile.thumbnails` holds it; None if it is too large for this."""
    text = base64.b64encode(jpeg).decode()
    return text if len(text) <= LARGEST_THUMBNAIL else None


def _split(address: str) -> tuple[str, str]:
    folder, _, name = address.rpartition("/")
    if not name or not PurePosixPath(name).suffix:
        raise ConfigError(f"{address}: give a file, such as results.json.")
    return folder or ("/" if address.startswith("/") else "."), name
