"""Measures memory and correctness of one contender, in a process of its own.

In this way the peak of memory belongs to the contender alone, and a crash of a peer, or an illegal access that breaks
the CUDA context, affects no other contender.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.machine import REPOSITORY
from benchmarks.harness.rounds import Skipped

from .memory import dense_refusal, peak_bytes
from .outcome import attempt
from .passes import call_of
from .size import Size
from .subject import Batch, Contender, Loss, Subject
from .subjects import SUBJECTS
from .truth import Agreement, Sampled, agreement, sampled
from .variants import PLAIN, Pass

# A kernel that waits for a lock may never end.
_LONGEST_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The task of one process: the contender `name` at all `sizes`, which have one width, in the named variants."""

    subject: str
    name: str
    variants: Sequence[str]
    sizes: Sequence[Size]
    dtype: str
    device: str
    check_rows: int

    @classmethod
    def from_json(cls, text: str) -> Job:
        raw: dict[str, Any] = json.loads(text)
        raw["sizes"] = [Size(**each) for each in raw["sizes"]]
        return cls(**raw)

    @property
    def about(self) -> Subject:
        return SUBJECTS[self.subject]

    @property
    def contenders(self) -> list[Contender]:
        return [each for each in self.about.roster() if each.name == self.name and each.variant.name in self.variants]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of a process. Without `size` it holds for all sizes."""

    variant: str
    size: Size | None = None
    pass_: Pass | None = None
    skipped: str | None = None
    peak_bytes: int | None = None
    agreement: Agreement | None = None
    sampled: Sampled | None = None


Place = tuple[str, Size | None, Pass | None]


def probe(job: Job) -> dict[Place, Finding]:
    """Runs `job` in a new process. What it could not report before it ended is skipped, with the way it ended."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "findings.jsonl"
        report.touch()
        reason = _run([json.dumps(asdict(job)), str(report)])
        found = [_finding(text) for text in report.read_text().splitlines()]
    findings: dict[Place, Finding] = {(each.variant, each.size, each.pass_): each for each in found}
    if reason is not None:
        for place in _places(job):
            findings.setdefault(place, Finding(variant=place[0], size=place[1], pass_=place[2], skipped=reason))
    return findings


def _run(words: Sequence[str]) -> str | None:
    """Runs `main` in a new process. Returns how it ended if it failed, else None."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.kernels.probe", *words],
            cwd=REPOSITORY,
            # malloc would keep freed memory, and the next peak would begin there.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return f"its process did not end in {_LONGEST_S} s"
    return _how_it_ended(done.returncode, done.stderr) if done.returncode else None


def _places(job: Job) -> Iterator[Place]:
    for contender in job.contenders:
        variant = contender.variant.name
        yield (variant, None, None)
        for size in job.sizes:
            for pass_ in contender.passes:
                yield (variant, size, pass_)


def _how_it_ended(code: int, errors: str) -> str:
    if code < 0:
        killed = signal.Signals(-code).name
        return f"its process ended by {killed}" + (" (out of memory?)" if killed == "SIGKILL" else "")
    return f"its process failed: {errors.strip().splitlines()[-1][:200] if errors.strip() else f'status {code}'}"


def _finding(text: str) -> Finding:
    raw: dict[str, Any] = json.loads(text)
    kinds: Mapping[str, type[Any]] = {"size": Size, "agreement": Agreement, "sampled": Sampled}
    for name, kind in kinds.items():
        raw[name] = None if raw[name] is None else kind(**raw[name])
    return Finding(**raw)


def findings_of(contender: Contender, job: Job) -> Iterator[Finding]:
    """Yields the agreement with float64 first. If the contender does not run at all, nothing else follows."""
    device, dtype = torch.device(job.device), getattr(torch, job.dtype)
    overall = Finding(variant=contender.variant.name)
    agreed = agreement(job.about, contender, job.sizes[0].width, dtype, device)
    if isinstance(agreed, Skipped):
        yield replace(overall, skipped=agreed.reason)
        return
    yield replace(overall, agreement=agreed)
    for size in job.sizes:
        yield from _at_size(contender, size, job)


def _at_size(contender: Contender, size: Size, job: Job) -> Iterator[Finding]:
    device, dtype = torch.device(job.device), getattr(torch, job.dtype)
    overall = Finding(variant=contender.variant.name, size=size)
    refusal = None if contender.dense is None else dense_refusal(contender.dense(size), device)
    batch = attempt(lambda: job.about.draw(size, dtype, device))
    loss = attempt(contender.build)
    for pass_ in contender.passes:
        at = replace(overall, pass_=pass_)
        if refusal is not None:
            yield replace(at, skipped=refusal)
        elif isinstance(batch, Skipped) or isinstance(loss, Skipped):
            yield replace(at, skipped=batch.reason if isinstance(batch, Skipped) else "it could not be built")
        else:
            yield _peak(at, contender, loss, batch, pass_)
    if job.check_rows and contender.variant == PLAIN and not isinstance(batch, Skipped) and refusal is None:
        checked = attempt(lambda: sampled(job.about, contender.build(), batch, contender.variant, job.check_rows))
        yield replace(overall, sampled=None if isinstance(checked, Skipped) else checked)


def _peak(at: Finding, contender: Contender, loss: Loss, batch: Batch, pass_: Pass) -> Finding:
    call = call_of(loss, batch, contender.variant, pass_)
    # On a CPU the check of correctness was a sufficient warm-up for contenders that do not compile.
    if contender.compiles or batch.device.type == "cuda":
        attempt(call)
    peak = attempt(lambda: peak_bytes(call, batch.device))
    return replace(at, skipped=peak.reason) if isinstance(peak, Skipped) else replace(at, peak_bytes=peak)


def main(job: Job, report: Path) -> None:
    """Writes the findings of `job` to `report`, one JSON line each."""
    with report.open("a", buffering=1) as file:
        for contender in job.contenders:
            for finding in findings_of(contender, job):
                file.write(json.dumps(asdict(finding)) + "\n")


if __name__ == "__main__":
    main(Job.from_json(sys.argv[1]), Path(sys.argv[2]))
