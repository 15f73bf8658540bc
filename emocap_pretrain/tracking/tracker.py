"""What the loop says of a run while it goes; `MemoryTracker` is the form for tests and for ranks other than 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Remembers one run. Only `start` of an implementation may fail: later an outage must not stop training."""

    @property
    def run_id(self) -> str: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Scalars of a step. A step that was logged before (a replay after a restart) is not logged again."""
        ...

    def text(self, name: str, content: str) -> None: ...

    def picture(self, name: str, path: Path) -> None: ...

    def describe(self, markdown: str) -> None:
        """What a person reads first on the run's page."""
        ...

    def checkpoint(self, url: str, step: int, digest: str) -> None:
        """A checkpoint was committed at `url`; its bytes stay there."""
        ...

    def finish(self, status: Status) -> None: ...


@dataclass(slots=True)
class MemoryTracker:
    """Keeps everything in lists."""

    run_id: str = "memory"
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list[tuple[int, dict[str, float]]])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    pictures: dict[str, bytes] = field(default_factory=dict[str, bytes])
    checkpoints: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    description: str = ""
    status: Status | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if not self.rows or step > self.rows[-1][0]:
            self.rows.append((step, dict(metrics)))

    def text(self, name: str, content: str) -> None:
        self.texts[name] = content

    def picture(self, name: str, path: Path) -> None:
        self.pictures[name] = path.read_bytes()

    def describe(self, markdown: str) -> None:
        self.description = markdown

    def checkpoint(self, url: str, step: int, digest: str) -> None:  # noqa: ARG002 - the protocol's form
        self.checkpoints.append((url, step))

    def finish(self, status: Status) -> None:
        self.status = status
