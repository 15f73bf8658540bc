"""The result of a run, as a value, as JSON and as a table for a person."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from emocap_pretrain.evaluation.confusion import Confusion


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """Zero-shot classification of one dataset, as shares in [0, 1]."""

    url: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    uar: float
    war: float
    chance: float
    majority: float

    @classmethod
    def of(cls, url: str, confusion: Confusion) -> "ZeroShot":
        counts = tuple(tuple(map(int, row)) for row in confusion.counts)
        return cls(url, confusion.classes, counts, confusion.uar, confusion.war, confusion.chance, confusion.majority)

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "ZeroShot":
        tree["classes"] = tuple(tree["classes"])
        tree["counts"] = tuple(tuple(row) for row in tree["counts"])
        return cls(**tree)

    @property
    def confusion(self) -> Confusion:
        return Confusion(self.classes, np.array(self.counts))


@dataclass(frozen=True, slots=True)
class Report:
    """What a finished run says of itself."""

    name: str
    url: str
    step: int
    seconds: float
    ranks: int
    samples_per_s: float
    loss: float | None
    run_id: str
    tracking_uri: str
    zero_shot: ZeroShot | None

    def dump(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> "Report":
        tree: dict[str, Any] = json.loads(data)
        zero_shot: dict[str, Any] | None = tree.pop("zero_shot")
        return cls(**tree, zero_shot=ZeroShot.parse(zero_shot) if zero_shot else None)

    def table(self) -> Table:
        """Two columns: what, and its value."""
        table = Table(title=f"Run {self.name}", title_justify="left", show_header=False)
        for name, value in _rows(self):
            table.add_row(name, value)
        return table

    def markdown(self) -> str:
        """The same as a Markdown table."""
        return "\n".join(f"| {name} | {value} |" for name, value in [("", self.name), ("---", "---"), *_rows(self)])


def _rows(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("steps", f"{report.step} on {report.ranks} ranks"),
        ("training time", f"{report.seconds:.0f} s, {report.samples_per_s:.0f} samples/s"),
        ("last loss", "not finite" if report.loss is None else f"{report.loss:.3f}"),
    ]
    if report.zero_shot:
        rows += zero_shot_rows(report.zero_shot)
    return [*rows, ("run folder", report.url)]


def zero_shot_rows(result: ZeroShot) -> list[tuple[str, str]]:
    """Table rows of a zero-shot result, each beside the guess that does not look."""
    occurring = sum(any(row) for row in result.counts)
    return [
        ("zero-shot UAR", f"{result.uar:.1%}  (chance {result.chance:.1%}: {occurring} classes)"),
        ("zero-shot WAR", f"{result.war:.1%}  (majority class {result.majority:.1%})"),
        ("evaluated on", f"{sum(map(sum, result.counts))} samples of {result.url}"),
    ]
