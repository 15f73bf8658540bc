"""Measures the memory and the numerical errors of one contender (implementation of a loss) in a process of its own.

The peak of the process's memory then belongs to this contender alone. If a contender crashes, or breaks the CUDA
context by an illegal access, no other contender is affected.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from benchmarks.harness.machine import REPOSITORY
from benchmarks.harness.rounds import Skipped

from .device import attempt, dense_refusal, peak_bytes
from .subject import Batch, Contender, Loss, Pass, Size, Subject, call_of, forward, forward_backward
from .subjects import PLAIN, SUBJECTS

# A process that runs longer is killed: a kernel that waits for a lock may never end.
_LONGEST_S = 900
# The relative tolerance of each type. Half precision rounds logits of size 14 to 0.03, and float32 on tensor cores
# keeps 10 bits.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}

# A size and a pass, which identify a finding about a contender.
Place = tuple[Size | None, Pass | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTask:
    """The task of one process: to test a contender (implementation of a loss) at some sizes, which have the same width.

    `name` and `variant` identify the contender among those of `subject`. If `check_rows` is not 0, that many rows of
    the gradients of the plain loss are compared with float64 at every size.
    """

    subject: str
    name: str
    variant: str
    sizes: Sequence[Size]
    dtype: str
    device: str
    check_rows: int

    @classmethod
    def from_json(cls, text: str) -> Self:
        raw: dict[str, Any] = json.loads(text)
        raw["sizes"] = [Size(**each) for each in raw["sizes"]]
        return cls(**raw)

    @property
    def contender(self) -> Contender:
        known = SUBJECTS[self.subject].contenders
        return next(each for each in known if (each.name, each.variant.name) == (self.name, self.variant))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding about an implementation of a loss (contender).

    Attributes:
        size: The size of the batch; None if the finding holds for all sizes.
        pass_: The pass, "forward" or "forward+backward"; None if the finding holds for all passes.
        skipped: The reason why the contender does not run.
        peak_bytes: The peak memory of a call.
        agreement: The comparison with float64 at a small size (see `agreement`).
        sampled: The comparison of some rows of the gradients with float64 at this size (see `sampled`).
    """

    size: Size | None = None
    pass_: Pass | None = None
    skipped: str | None = None
    peak_bytes: int | None = None
    agreement: Mapping[str, Any] | None = None
    sampled: Mapping[str, Any] | None = None

    @property
    def place(self) -> Place:
        return self.size, self.pass_


def probe(task: ProbeTask) -> dict[Place, Finding]:
    """Tests an implementation of a loss in a new process, as `task` says, and returns the findings of the process.

    If the process fails, each size and pass that it did not report has a finding with the reason of the failure.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "findings.jsonl"
        report.touch()
        reason = _run([json.dumps(asdict(task)), str(report)])
        rows: list[dict[str, Any]] = [json.loads(text) for text in report.read_text().splitlines()]
    for row in rows:
        row["size"] = row["size"] and Size(**row["size"])
    found = [Finding(**row) for row in rows]
    places: list[Place] = [(None, None), *product(task.sizes, task.contender.passes)] if reason else []
    skipped = [Finding(size=size, pass_=pass_, skipped=reason) for size, pass_ in places]
    return {each.place: each for each in (*skipped, *found)}


def _run(words: Sequence[str]) -> str | None:
    """Runs `main` in a new process. Returns how the process ended if it failed, else None."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.kernels.probe", *words],
            cwd=REPOSITORY,
            # Without this setting malloc keeps freed memory, which the next peak would not include.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return f"its process did not end in {_LONGEST_S} s"
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode).name
        return f"its process ended by {killed}" + (" (out of memory?)" if killed == "SIGKILL" else "")
    if done.returncode:
        errors = done.stderr.strip()
        return f"its process failed: {errors.splitlines()[-1][:200] if errors else f'status {done.returncode}'}"
    return None


def findings_of(task: ProbeTask) -> Iterator[Finding]:
    """Yields a finding about the errors of an implementation at a small size, then the findings at each size of `task`.

    If the implementation fails at the small size, the only finding is one with the reason.
    """
    subject, contender = SUBJECTS[task.subject], task.contender
    device, dtype = torch.device(task.device), getattr(torch, task.dtype)
    agreed = agreement(subject, contender, subject.draw(subject.small(task.sizes[0].width), dtype, device))
    if isinstance(agreed, Skipped):
        yield Finding(skipped=agreed.reason)
        return
    yield Finding(agreement=agreed)
    for size in task.sizes:
        refusal = None if contender.dense is None else dense_refusal(contender.dense(size), device)
        batch, loss = attempt(partial(subject.draw, size, dtype, device)), attempt(contender.build)
        for pass_ in contender.passes:
            at = Finding(size=size, pass_=pass_)
            if refusal is not None:
                yield replace(at, skipped=refusal)
            elif isinstance(batch, Skipped) or isinstance(loss, Skipped):
                yield replace(at, skipped=batch.reason if isinstance(batch, Skipped) else "it could not be built")
            else:
                yield _peak(at, contender, loss, batch, pass_)
        if task.check_rows and contender.variant == PLAIN and not isinstance(batch, Skipped) and refusal is None:
            checked = attempt(partial(sampled, subject, contender, batch, task.check_rows))
            yield Finding(size=size, sampled=None if isinstance(checked, Skipped) else checked)


def _peak(at: Finding, contender: Contender, loss: Loss, batch: Batch, pass_: Pass) -> Finding:
    """Returns the finding `at` with the peak memory of one call, or with the reason why it failed."""
    call = call_of(loss, batch, contender.variant, pass_)
    # On a CPU the check of correctness was a sufficient warm-up for contenders that do not compile.
    if contender.compiles or batch.device.type == "cuda":
        attempt(call)
    peak = attempt(lambda: peak_bytes(call, batch.device))
    return replace(at, skipped=peak.reason) if isinstance(peak, Skipped) else replace(at, peak_bytes=peak)


def agreement(subject: Subject, contender: Contender, batch: Batch) -> Mapping[str, Any] | Skipped | None:
    """Compares an implementation of a loss (contender) with our reference in float64 on a small batch.

    Returns:
        The relative errors of the loss and of the gradient of the images (or patches), and whether both are within the
        tolerance. None if our package does not compute this variant, and Skipped if the contender does not run.
    """
    variant = contender.variant
    true = attempt(lambda: forward_backward(subject.ours("reference", variant), batch.to(torch.float64), variant))
    if isinstance(true, Skipped):
        ran = attempt(lambda: forward(contender.build(), batch))
        return ran if isinstance(ran, Skipped) else None
    got = attempt(lambda: forward_backward(contender.build(), batch, variant))
    if isinstance(got, Skipped):
        return got
    tolerance = _TOLERANCE[batch.leaves(variant)[0].dtype]
    errors = [_relative_error(mine, exact) for mine, exact in zip(got[:2], true[:2], strict=True)]
    return {"loss_error": errors[0], "gradient_error": errors[1], "right": max(errors) <= tolerance}


def sampled(subject: Subject, contender: Contender, batch: Batch, rows: int) -> Mapping[str, Any]:
    """Compares the loss and some rows of the gradients of an implementation with our chunked loss in float64.

    `contender` is an implementation of the plain loss, and `rows` is the number of compared rows. The comparison uses
    our chunked loss and not our reference, because it needs little memory even for a large batch. Tests compare the
    chunked loss with the reference.
    """
    value, of_images, of_texts, *_ = forward_backward(contender.build(), batch, PLAIN)
    true = forward_backward(subject.ours("chunked", PLAIN), batch.to(torch.float64), PLAIN)
    images, texts = (
        torch.randperm(len(each), generator=torch.Generator().manual_seed(0))[:rows].to(batch.device)
        for each in (of_images, of_texts)
    )
    return {
        "rows": len(images),
        "loss_error": _relative_error(value, true[0]),
        "image_gradient_error": _relative_error(of_images[images], true[1][images]),
        "text_gradient_error": _relative_error(of_texts[texts], true[2][texts]),
    }


def _relative_error(got: Tensor, true: Tensor) -> float:
    """Returns the norm of the difference, relative to the norm of the true tensor."""
    error = float((got.double() - true.double()).norm() / true.double().norm().clamp_min(1e-300))
    # JSON has no NaN, and a comparison with NaN would not report an error.
    return error if math.isfinite(error) else sys.float_info.max


def main(task: ProbeTask, report: Path) -> None:
    """Writes each finding of a task to `report` as one JSON line as soon as it is made."""
    with report.open("a", buffering=1) as file:
        file.writelines(json.dumps(asdict(finding)) + "\n" for finding in findings_of(task))


if __name__ == "__main__":
    main(ProbeTask.from_json(sys.argv[1]), Path(sys.argv[2]))
