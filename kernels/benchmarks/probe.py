"""Memory and correctness of one contender, in a process of its own.

Only so is a peak its own, and does a crash of a peer, or an illegal access that spoils the CUDA context, stay with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from batches import Batch, draw
from contenders import Contender, Loss, roster
from memory import dense_refusal, peak_bytes
from outcome import Skipped, attempt
from passes import call_of
from truth import Agreement, Sampled, agreement, sampled
from variants import PASSES, PLAIN, Pass

# A kernel that waits for a lock may wait for ever.
_LONGEST_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`name` at all `rows`, in the named variants."""

    name: str
    variants: Sequence[str]
    rows: Sequence[int]
    width: int
    dtype: str
    device: str
    check_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one process found; without `rows` it is about every size."""

    variant: str
    rows: int | None = None
    pass_: Pass | None = None
    skipped: str | None = None
    peak_bytes: int | None = None
    agreement: Agreement | None = None
    sampled: Sampled | None = None


Place = tuple[str, int | None, Pass | None]


def probe(job: Job) -> dict[Place, Finding]:
    """Runs `job` in a new process; what that did not live to report is skipped with the way it died."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "findings.jsonl"
        report.touch()
        reason = _run([json.dumps(asdict(job)), str(report)])
        found = [_finding(text) for text in report.read_text().splitlines()]
    findings: dict[Place, Finding] = {(each.variant, each.rows, each.pass_): each for each in found}
    if reason is not None:
        for place in _places(job):
            findings.setdefault(place, Finding(variant=place[0], rows=place[1], pass_=place[2], skipped=reason))
    return findings


def _run(words: Sequence[str]) -> str | None:
    """Runs `main` in a new process; gives the way it ended if that was not well."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, *words],
            # malloc would keep what it is given back, and the next peak would start from there.
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
    for variant in job.variants:
        yield (variant, None, None)
        for rows in job.rows:
            for pass_ in PASSES:
                yield (variant, rows, pass_)


def _how_it_ended(code: int, errors: str) -> str:
    if code < 0:
        killed = signal.Signals(-code).name
        return f"its process ended by {killed}" + (" (out of memory?)" if killed == "SIGKILL" else "")
    return f"its process failed: {errors.strip().splitlines()[-1][:200] if errors.strip() else f'status {code}'}"


def _finding(text: str) -> Finding:
    raw: dict[str, Any] = json.loads(text)
    agreed, checked = raw.pop("agreement"), raw.pop("sampled")
    return Finding(
        **raw,
        agreement=None if agreed is None else Agreement(**agreed),
        sampled=None if checked is None else Sampled(**checked),
    )


def findings_of(contender: Contender, job: Job) -> Iterator[Finding]:
    """Agreement first; if the contender does not run at all, nothing else."""
    device, dtype = torch.device(job.device), getattr(torch, job.dtype)
    overall = Finding(variant=contender.variant.name)
    agreed = agreement(contender, job.width, dtype, device)
    if isinstance(agreed, Skipped):
        yield replace(overall, skipped=agreed.reason)
        return
    yield replace(overall, agreement=agreed)
    for rows in job.rows:
        yield from _at_size(contender, rows, job)


def _at_size(contender: Contender, rows: int, job: Job) -> Iterator[Finding]:
    device, dtype = torch.device(job.device), getattr(torch, job.dtype)
    overall = Finding(variant=contender.variant.name, rows=rows)
    refusal = dense_refusal(rows, device) if contender.dense else None
    batch = attempt(lambda: draw(rows, job.width, dtype, device))
    loss = attempt(contender.build)
    for pass_ in PASSES:
        at = replace(overall, pass_=pass_)
        if refusal is not None:
            yield replace(at, skipped=refusal)
        elif isinstance(batch, Skipped) or isinstance(loss, Skipped):
            yield replace(at, skipped=batch.reason if isinstance(batch, Skipped) else "it could not be built")
        else:
            yield _peak(at, contender, loss, batch, pass_)
    if job.check_rows and contender.variant == PLAIN and not isinstance(batch, Skipped) and refusal is None:
        checked = attempt(lambda: sampled(contender.build(), batch, contender.variant, job.check_rows))
        yield replace(overall, sampled=None if isinstance(checked, Skipped) else checked)


def _peak(at: Finding, contender: Contender, loss: Loss, batch: Batch, pass_: Pass) -> Finding:
    call = call_of(loss, batch, contender.variant, pass_)
    # On a CPU the check of correctness was warm-up enough for whoever does not compile.
    if contender.compiles or batch.image.is_cuda:
        attempt(call)
    peak = attempt(lambda: peak_bytes(call, batch.image.device))
    return replace(at, skipped=peak.reason) if isinstance(peak, Skipped) else replace(at, peak_bytes=peak)


def main(job: Job, report: Path) -> None:
    with report.open("a", buffering=1) as file:
        for contender in roster():
            if contender.name == job.name and contender.variant.name in job.variants:
                for finding in findings_of(contender, job):
                    file.write(json.dumps(asdict(finding)) + "\n")


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])), Path(sys.argv[2]))
