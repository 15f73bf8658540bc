"""Defines how the loop reports on a run; `MemoryTracker` is for tests and for ranks other than 0."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.tracking.spool import Row

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Remembers one run over all its starts. Only `start` of an implementation may fail; nothing here waits long.

    After a restart a repeated report counts once: a metric has one value at a step and its steps only grow, a
    checkpoint one entry, a text or a picture of the same name takes the place of the earlier one.
    """

    @property
    def run_id(self) -> str: ...

    @property
    def experiment_id(self) -> str:
        """The experiment's name in the addresses of pages; empty while it is not known."""
        ...

    @property
    def silent(self) -> bool:
        """True if rows were dropped because an attempt with a higher number writes to the same run."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Scalars of a step. A metric that has a value at this step or a later one keeps it (a replay)."""
        ...

    def score(self, metrics: Mapping[str, float], step: int) -> None:
        """Scalars of the checkpoint of `step`: beside the run's own they are shown with it."""
        ...

    def rescore(self, metrics: Mapping[str, float], step: int) -> None:
        """Records a score as `score` does, for a result that may be computed again: a new value replaces an old one."""
        ...

    def datasets(self, used: Sequence[DatasetUse]) -> None:
        """Records datasets as inputs of the run; a dataset that the run has already counts once."""
        ...

    def text(self, name: str, content: str) -> None: ...

    def picture(self, name: str, path: Path) -> None: ...

    def describe(self, markdown: str) -> None:
        """Sets the text that a person reads first on the run's page."""
        ...

    def checkpoint(self, url: str, step: int, digest: str) -> None:
        """A checkpoint was committed at `url`; its bytes stay there."""
        ...

    def forget(self, steps: Collection[int]) -> None:
        """The checkpoints of these steps were swept."""
        ...

    def keep(self, steps: Collection[int]) -> None:
        """The run has checkpoints of these steps and no others; this makes good what a lost start left unsaid."""
        ...

    def flush(self, wait_s: float) -> bool:
        """Waits at most this long for rows to arrive, and returns whether all did.

        It returns at once while the tracker is unreachable.
        """
        ...

    def unsent(self) -> list[Row]:
        """Returns the rows that have not arrived, as JSON values; in a checkpoint they survive this host."""
        ...

    def finish(self, status: Status) -> None:
        """Say how the start ended. What then is `unsent` waits for the next start."""
        ...


@dataclass(slots=True)
class MemoryTracker:
    """Keeps everything in lists."""

    run_id: str = "memory"
    experiment_id: str = ""
    silent: bool = False
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])
    scores: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    inputs: list[DatasetUse] = field(default_factory=list[DatasetUse])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    pictures: dict[str, bytes] = field(default_factory=dict[str, bytes])
    checkpoints: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    description: str = ""
    status: Status | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        last = {name: at for at, values in self.rows for name in values}
        if new := {name: value for name, value in metrics.items() if step > last.get(name, -1)}:
            self.rows.append((step, new))

    def score(self, metrics: Mapping[str, float], step: int) -> None:
        self.log(metrics, step)
        self.scores[step] = {**metrics, **self.scores.get(step, {})}

    def rescore(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(metrics)))
        self.scores[step] = {**self.scores.get(step, {}), **metrics}

    def datasets(self, used: Sequence[DatasetUse]) -> None:
        self.inputs += [each for each in used if each not in self.inputs]

    def text(self, name: str, content: str) -> None:
        self.texts[name] = content

    def picture(self, name: str, path: Path) -> None:
        self.pictures[name] = path.read_bytes()

    def describe(self, markdown: str) -> None:
        self.description = markdown

    def checkpoint(self, url: str, step: int, digest: str) -> None:  # noqa: ARG002 - the protocol's form
        self.forget([step])
        self.checkpoints.append((url, step))

    def forget(self, steps: Collection[int]) -> None:
        self.checkpoints = [each for each in self.checkpoints if each[1] not in steps]

    def keep(self, steps: Collection[int]) -> None:
        self.checkpoints = [each for each in self.checkpoints if each[1] in steps]

    def flush(self, wait_s: float) -> bool:  # noqa: ARG002 - the protocol's form
        return True

    def unsent(self) -> list[Row]:
        return []

    def finish(self, status: Status) -> None:
        self.status = status
