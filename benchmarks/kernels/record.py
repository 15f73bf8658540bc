"""The measurements as JSON lines, of which all tables and plots are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.measurement import Spread

from .size import Size
from .subjects import subject_of
from .truth import Agreement, Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender in one pass at one size, measured, or skipped and why.

    Attributes:
        what: Which loss of ours it is about; tells these lines from others in the same file.
        contender: Who; with `variant` it is what a curve of a plot is named.
        function: What is computed if it is another function than the plain loss, mined or not; in words.
        pass_: `forward` or `forward+backward`; in JSON it is called `pass`. None if skipped at every size.
        rows: The batch, on one device; None if skipped at every size.
        patches: Of an image; None where the loss knows whole images only.
        sentences: Of the batch; None as well.
        seconds: Of one call.
        ratio: Seconds over those of `ratio_to` in the same round; of another function, over those of the plain loss.
        peak_bytes: At the worst moment of a call, above the inputs; results counted.
        floor_flops: The fewest operations that this loss takes.
        eff: `floor_flops` / (median seconds x `matmul_flops_per_s`).
        matmul_flops_per_s: Of a square product in `dtype`, timed in the same rounds.
        agreement: With float64 at a small size; None if ours has no such loss to compare with.
        sampled: With float64 at this size, in sampled rows.
    """

    what: str
    contender: str
    variant: str
    objective: str
    mining: str | None = None
    function: str | None = None
    pass_: str | None = None
    rows: int | None = None
    patches: int | None = None
    sentences: int | None = None
    width: int
    dtype: str
    skipped: str | None = None
    seconds: Spread | None = None
    repetitions: int | None = None
    ratio: Spread | None = None
    ratio_to: str | None = None
    peak_bytes: int | None = None
    floor_flops: float | None = None
    eff: float | None = None
    matmul_flops_per_s: float | None = None
    agreement: Agreement | None = None
    sampled: Sampled | None = None
    device: str
    versions: Mapping[str, str | None]
    commit: str | None
    date: str
    command: str

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What a figure or a table is about."""
        return (self.what, self.device, self.dtype, self.width)

    @property
    def size(self) -> Size | None:
        return None if self.rows is None else Size(self.rows, self.width, self.patches, self.sentences)

    @property
    def label(self) -> str:
        """The name of a curve, which says so if the contender computes something else."""
        name = self.contender if self.variant == "plain" else f"{self.contender} {self.variant}"
        return f"{name} (wrong)" if self.agreement is not None and not self.agreement.right else name


_NESTED: Mapping[str, type] = {"seconds": Spread, "ratio": Spread, "agreement": Agreement, "sampled": Sampled}
_KNOWN = frozenset(field.name.rstrip("_") for field in fields(Line))


def to_json(line: Line) -> str:
    return json.dumps({name.rstrip("_"): value for name, value in asdict(line).items()})


def from_json(text: str) -> Line | None:
    """None for a line about something else."""
    raw: dict[str, Any] = json.loads(text)
    if subject_of(raw.get("what", "")) is None:
        return None
    known = {name: value for name, value in raw.items() if name in _KNOWN}
    for name, kind in _NESTED.items():
        if known.get(name) is not None:
            known[name] = kind(**known[name])
    return Line(pass_=known.pop("pass", None), **known)


def append(path: Path, text: str) -> None:
    """Adds one line of JSON, so that a run that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text + "\n")


def read(path: Path) -> list[Line]:
    """The latest line of each contender at each size."""
    texts = path.read_text().splitlines()
    lines = (from_json(text) for text in texts if text.strip())
    return latest(line for line in lines if line is not None)


def latest(lines: Iterable[Line]) -> list[Line]:
    """Of equal measurements the last one, in the order of their first."""
    kept: dict[tuple[object, ...], Line] = {}
    for line in lines:
        kept[(line.contender, line.variant, line.pass_, line.size, *line.place)] = line
    return list(kept.values())
