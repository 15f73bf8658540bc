"""Defines the protocol through which training reports on a run to a tracking server.

`MlflowTracker` implements it on rank 0 (`mlflow_tracker.py`), and `MemoryTracker` for tests and for ranks other than 0.
So code that runs on every rank needs no branch: only the calls of rank 0 reach a server.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.tracking.spool import Row

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Describes a run to the tracker that records it.

    Attributes:
        name: The name of the run.
        settings: The settings that say where the run is tracked.
        params: All settings of the run, without secrets (`Config.stored`).
        charts: The charts of the evaluation tasks, each a list of metrics. The most important chart comes first.
    """

    name: str
    settings: TrackingConfig
    params: Mapping[str, Any]
    charts: Sequence[Sequence[str]] = ()


class Tracker(Protocol):
    """Records one run over all its attempts on a tracking server.

    No method raises an error of the server, and only `flush` and `finish` wait for the server.

    A report that is repeated after a restart counts once. A value of a metric is left out if the metric already has a
    value at the same or a later step, except in `replace_scores`. A checkpoint has one entry on the server, even if it
    is reported twice. A text or picture replaces an earlier one of the same name.
    """

    @property
    def run_id(self) -> str:
        """Returns the tracking server's id of the run."""
        ...

    @property
    def experiment_id(self) -> str:
        """Returns the tracking server's id of the run's experiment; empty until the server has answered."""
        ...

    @property
    def superseded(self) -> bool:
        """Returns whether the tracker has dropped reports because an attempt with a higher number writes to the run."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records the metrics of a step. A metric that already has a value at this or a later step is left out."""
        ...

    def log_scores(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics of the run as `log_metrics` does, and also as metrics of the checkpoint of `step`."""
        ...

    def replace_scores(self, metrics: Mapping[str, float], step: int) -> None:
        """Records scores as `log_scores` does, except that a new value of the same step replaces the old value."""
        ...

    def log_datasets(self, used: Sequence[DatasetUse]) -> None:
        """Records datasets as inputs of the run. A dataset that is recorded twice counts once."""
        ...

    def log_text(self, name: str, content: str) -> None:
        """Stores a text under a name, which may contain folders."""
        ...

    def log_picture(self, name: str, path: Path) -> None:
        """Stores the image file at `path` under a name, which may contain folders. The file is read at once."""
        ...

    def set_description(self, markdown: str) -> None:
        """Sets the text at the top of the run's page."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run. A tag that exists gets the new value."""
        ...

    def log_checkpoint(self, url: str, step: int, digest: str) -> None:
        """Records that a checkpoint was committed at `url`; its files are not copied."""
        ...

    def delete_checkpoints(self, steps: Collection[int]) -> None:
        """Deletes the entries of the checkpoints of these steps."""
        ...

    def keep_checkpoints(self, steps: Collection[int]) -> None:
        """Deletes the entries of all checkpoints except those of these steps.

        This corrects the entries if an earlier attempt deleted a checkpoint, but ended before it could delete the entry
        of this checkpoint.
        """
        ...

    def flush(self, wait_s: float) -> bool:
        """Waits up to `wait_s` seconds until all rows have arrived, and returns whether they have.

        Rows are reports, which are sent in the background. If the last two deliveries have failed, the method does not
        wait longer for these rows. So it waits briefly or not at all while the server is unreachable.
        """
        ...

    def unsent(self) -> list[Row]:
        """Returns the rows (reports) that have not arrived. Checkpoints store them for a restart on another host."""
        ...

    def finish(self, status: RunStatus) -> None:
        """Records how the attempt has ended. The next attempt sends the rows that `unsent` returns after this call."""
        ...


@dataclass(slots=True)
class MemoryTracker:
    """Keeps reports in memory, as its attributes, and sends nothing.

    It follows the rules of `Tracker`, as `MlflowTracker` does. A test checks that both trackers record the same metrics
    at the same steps.

    Attributes:
        rows: For each call that recorded metrics, the step and the metrics.
        scores: The scores of each checkpoint, by its step.
        inputs: The datasets.
        checkpoints: The URL and the step of each checkpoint that has an entry.
    """

    run_id: str = "memory"
    experiment_id: str = ""
    superseded: bool = False
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])
    scores: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    inputs: list[DatasetUse] = field(default_factory=list[DatasetUse])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    pictures: dict[str, bytes] = field(default_factory=dict[str, bytes])
    checkpoints: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict[str, str])
    status: RunStatus | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        last = {name: at for at, values in self.rows for name in values}
        if new := {name: value for name, value in metrics.items() if step > last.get(name, -1)}:
            self.rows.append((step, new))

    def log_scores(self, metrics: Mapping[str, float], step: int) -> None:
        self.log_metrics(metrics, step)
        self.scores[step] = {**metrics, **self.scores.get(step, {})}

    def replace_scores(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))
        self.scores[step] = {**self.scores.get(step, {}), **metrics}

    def log_datasets(self, used: Sequence[DatasetUse]) -> None:
        self.inputs += [each for each in used if each not in self.inputs]

    def log_text(self, name: str, content: str) -> None:
        self.texts[name] = content

    def log_picture(self, name: str, path: Path) -> None:
        self.pictures[name] = path.read_bytes()

    def set_description(self, markdown: str) -> None:
        self.description = markdown

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def log_checkpoint(self, url: str, step: int, digest: str) -> None:  # noqa: ARG002 - the protocol's form
        self.delete_checkpoints([step])
        self.checkpoints.append((url, step))

    def delete_checkpoints(self, steps: Collection[int]) -> None:
        self.checkpoints = [each for each in self.checkpoints if each[1] not in steps]

    def keep_checkpoints(self, steps: Collection[int]) -> None:
        self.checkpoints = [each for each in self.checkpoints if each[1] in steps]

    def flush(self, wait_s: float) -> bool:  # noqa: ARG002 - the protocol's form
        return True

    def unsent(self) -> list[Row]:
        return []

    def finish(self, status: RunStatus) -> None:
        self.status = status
