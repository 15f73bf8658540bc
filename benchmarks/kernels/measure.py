"""Measures contenders (implementations of a loss): first each in its own process, then all together in one process.

The process of one contender (`probe`) measures errors and peak memory, and finds out at which sizes the contender runs.
Then the times are measured size by size: all contenders that run at this size take turns in one process
(`device.in_rounds`). A record contains the errors and the memory as well as the times. All of this is done for one
width after another, because a `ProbeTask` has one width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import Skipped

from .device import PACKAGES, clock_of, dtype_name, in_rounds
from .probe import Finding, Place, ProbeTask, probe
from .subject import OURS, PASSES, Call, Contender, Pass, Size, Subject, call_of
from .subjects import PLAIN

# A contender in one pass, which takes part in the rounds.
Entry = tuple[Contender, Pass]
# The participant of the rounds that measures the rate of the machine.
MATMUL = "matmul"
Readings = Mapping[Entry | str, list[float] | Skipped]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPlan:
    """The implementations of a loss (contenders) and the sizes to measure.

    `repeats` is the number of readings. `matmul` is the side of the square matrices whose product is timed as well. An
    efficiency is relative to the rate (FLOP/s) of this product. For `check_rows` see `ProbeTask`.
    """

    subject: Subject
    contenders: Sequence[Contender]
    sizes: Sequence[Size]
    dtype: torch.dtype
    device: torch.device
    repeats: int
    check_rows: int
    matmul: int


Findings = Mapping[Contender, Mapping[Place, Finding]]


def measure(plan: LossPlan, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the measurements of each size as soon as they are made."""
    for width in dict.fromkeys(size.width for size in plan.sizes):
        sizes = [size for size in plan.sizes if size.width == width]
        findings = {contender: _probed(plan, contender, sizes) for contender in plan.contenders}
        able: list[Contender] = []
        for contender in plan.contenders:
            reason = _found(findings, contender).skipped
            if reason is None:
                able.append(contender)
            else:
                yield _record(plan, occasion, contender, width, Skipped(reason))
        entries: list[Entry] = [
            (contender, pass_) for pass_ in PASSES for contender in able if pass_ in contender.passes
        ]
        for size in sizes if entries else ():
            readings = _readings(plan, findings, entries, size)
            for entry in entries:
                yield _measured(plan, occasion, findings, size, readings, entry)


def _found(findings: Findings, contender: Contender, size: Size | None = None, pass_: Pass | None = None) -> Finding:
    """Returns what `probe` found out about an implementation at a size and in a pass.

    If `probe` found nothing, all fields of the returned `Finding` are None.
    """
    return findings[contender].get((size, pass_), Finding())


def _probed(plan: LossPlan, contender: Contender, sizes: Sequence[Size]) -> Mapping[Place, Finding]:
    """Returns what `probe` finds out about an implementation at `sizes`, which all have the same width."""
    if contender.needs_cuda and plan.device.type != "cuda":
        return {(None, None): Finding(skipped="needs a CUDA device")}
    task = ProbeTask(
        subject=plan.subject.name,
        name=contender.name,
        variant=contender.variant.name,
        sizes=sizes,
        dtype=dtype_name(plan.dtype),
        device=str(plan.device),
        check_rows=plan.check_rows,
    )
    return probe(task)


def _readings(plan: LossPlan, findings: Findings, entries: Sequence[Entry], size: Size) -> Readings:
    """Returns the measured seconds of each entry, and of a square matrix product, which is timed in turn with them.

    An entry is an implementation of the loss in one pass, such as the forward pass. For an entry that fails, the result
    holds a `Skipped` with the reason. An entry that has already failed in the process of its own (`probe`) is not tried
    again.
    """
    failed = {entry: reason for entry in entries if (reason := _found(findings, entry[0], size, entry[1]).skipped)}
    able = [entry for entry in entries if entry not in failed]
    batch = plan.subject.draw(size, plan.dtype, plan.device)
    left, right = torch.randn(2, plan.matmul, plan.matmul, dtype=plan.dtype, device=plan.device)
    # A loss is built once for both of its passes.
    losses = {contender: contender.build() for contender in dict.fromkeys(each for each, _ in able)}
    calls: dict[Entry | str, Call] = {MATMUL: lambda: left @ right}
    for contender, pass_ in able:
        calls[contender, pass_] = call_of(losses[contender], batch, contender.variant, pass_)
    taken = in_rounds(calls, clock_of(plan.device), repeats=plan.repeats)
    return {**taken, **{entry: Skipped(reason) for entry, reason in failed.items()}}


def _measured(
    plan: LossPlan, occasion: Occasion, findings: Findings, size: Size, readings: Readings, entry: Entry
) -> Measurement:
    """Returns the record of `entry` at a size. An entry is an implementation of the loss, and a pass.

    The record contains the time, the memory, the errors, the efficiency, and the time of the entry divided by the time
    of our loss (`_ours`).
    """
    contender, pass_ = entry
    taken, rate = readings[entry], readings[MATMUL]
    if isinstance(taken, Skipped) or isinstance(rate, Skipped):
        reason = taken if isinstance(taken, Skipped) else Skipped("no reading of the matrix product")
        return _record(plan, occasion, contender, size.width, reason, size=size, pass_=pass_)
    flops = plan.subject.floor_flops(contender.variant, pass_, size)
    flops_per_s = 2 * plan.matmul**3 / spread(rate).median
    more = {
        "peak_bytes": _found(findings, contender, size, pass_).peak_bytes,
        "floor_flops": flops,
        "eff": flops / (spread(taken).median * flops_per_s),
        "matmul_flops_per_s": flops_per_s,
        "agreement": _found(findings, contender).agreement,
        "sampled": _found(findings, contender, size).sampled,
    }
    over = {f"over {name}": ratios(taken, own) for name, own in _ours(readings, entry).items()}
    return _record(plan, occasion, contender, size.width, taken, size=size, pass_=pass_, ratios=over, more=more)


def _ours(readings: Readings, entry: Entry) -> dict[str, list[float]]:
    """Returns the readings of our loss with which `entry` is compared, by the name of the backend; empty if none exist.

    An entry is an implementation and a pass. The backend is `fused`, or `chunked` if `fused` has no readings. The pass
    and the variant of our loss are those of `entry`. For a variant with a `function`, which `objective` and `mining`
    cannot describe, our plain loss is used instead.
    """
    variant = entry[0].variant if entry[0].variant.function is None else PLAIN
    for name in OURS:
        for other, taken in readings.items():
            if isinstance(other, str) or isinstance(taken, Skipped) or other[0].name != name:
                continue
            if other[0].variant == variant and other[1] == entry[1]:
                return {name: taken}
    return {}


def _record(
    plan: LossPlan,
    occasion: Occasion,
    contender: Contender,
    width: int,
    readings: list[float] | Skipped,
    *,
    size: Size | None = None,
    pass_: Pass | None = None,
    ratios: Mapping[str, Sequence[float]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Measurement:
    """Returns the record of an implementation of the loss (contender).

    If it was skipped at every size, `size` and `pass_` are None.
    """
    variant = contender.variant
    what = {"objective": variant.objective, "mining": variant.mining_in_words, "function": variant.function}
    return measured(
        occasion,
        readings,
        what=plan.subject.what,
        contender=contender.name,
        setting={
            "variant": variant.name,
            "pass": pass_,
            "rows": size and size.rows,
            "patches": size and size.patches,
            "sentences": size and size.sentences,
            "width": width,
            "dtype": dtype_name(plan.dtype),
        },
        unit="s",
        ratios=ratios,
        more={**what, **(more or {})},
        versions=versions((*PACKAGES, *([contender.package] if contender.package else []))),
    )
