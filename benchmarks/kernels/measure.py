"""Measures contenders: each is probed in a process of its own, then all are timed in common rounds, size by size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import Skipped

from .device import PACKAGES, Call, clock_of, in_rounds
from .passes import call_of
from .probe import Finding, Job, Place, probe
from .results import setting_of
from .size import Size
from .subject import OURS, Batch, Contender, Loss, Subject
from .variants import PASSES, PLAIN, Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The contenders and sizes to measure.

    `matmul` is the side of a square matrix product, whose rate is the unit of efficiency.
    """

    subject: Subject
    contenders: Sequence[Contender]
    sizes: Sequence[Size]
    dtype: torch.dtype
    device: torch.device
    repeats: int
    check_rows: int
    matmul: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender in one pass, which takes part in the rounds."""

    contender: Contender
    pass_: Pass


# The participant that measures the rate of the machine.
MATMUL = "matmul"


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of the contenders' own processes, by name and place."""

    found: Mapping[tuple[str, Place], Finding]

    def overall(self, contender: Contender) -> Finding:
        return self.found[contender.name, (contender.variant.name, None, None)]

    def at(self, entry: Entry, size: Size) -> Finding:
        return self.found[entry.contender.name, (entry.contender.variant.name, size, entry.pass_)]

    def in_samples(self, contender: Contender, size: Size) -> Finding | None:
        return self.found.get((contender.name, (contender.variant.name, size, None)))


@dataclass(frozen=True, slots=True)
class Block:
    """All readings at one size. Entries whose own process failed have none."""

    plan: Plan
    occasion: Occasion
    findings: Findings
    size: Size
    readings: Mapping[Entry | str, list[float] | Skipped]

    def seconds(self, entry: Entry | str) -> list[float] | None:
        taken = self.readings.get(entry)
        return None if isinstance(taken, Skipped) else taken


def measure(plan: Plan, occasion: Occasion) -> Iterator[Measurement]:
    """Yields measurements as they are made, so that a run that is stopped keeps those it has."""
    for width in dict.fromkeys(size.width for size in plan.sizes):
        sizes = [size for size in plan.sizes if size.width == width]
        findings = _probe_all(plan, sizes)
        able = [contender for contender in plan.contenders if findings.overall(contender).skipped is None]
        for contender in plan.contenders:
            if contender not in able:
                reason = findings.overall(contender).skipped
                yield _skipped(plan, occasion, contender, width, reason)
        entries = [Entry(each, pass_) for pass_ in PASSES for each in able if pass_ in each.passes]
        for size in sizes if entries else ():
            block = Block(plan, occasion, findings, size, _readings(plan, findings, entries, size))
            yield from (_measured(block, entry) for entry in entries)


def _probe_all(plan: Plan, sizes: Sequence[Size]) -> Findings:
    """Probes all contenders at `sizes`, which are of one width."""
    found: dict[tuple[str, Place], Finding] = {}
    able: list[Contender] = []
    for contender in plan.contenders:
        if contender.needs_cuda and plan.device.type != "cuda":
            place = (contender.variant.name, None, None)
            found[contender.name, place] = Finding(variant=contender.variant.name, skipped="needs a CUDA device")
        else:
            able.append(contender)
    for name in dict.fromkeys(contender.name for contender in able):
        job = Job(
            subject=plan.subject.name,
            name=name,
            variants=[contender.variant.name for contender in able if contender.name == name],
            sizes=sizes,
            dtype=plan.dtype_name,
            device=str(plan.device),
            check_rows=plan.check_rows,
        )
        found.update({(name, place): finding for place, finding in probe(job).items()})
    return Findings(found)


def _readings(
    plan: Plan, findings: Findings, entries: Sequence[Entry], size: Size
) -> Mapping[Entry | str, list[float] | Skipped]:
    able = [entry for entry in entries if findings.at(entry, size).skipped is None]
    batch = plan.subject.draw(size, plan.dtype, plan.device)
    calls: dict[Entry | str, Call] = {MATMUL: _matmul(plan), **_calls(able, batch)}
    return in_rounds(calls, clock_of(plan.device), repeats=plan.repeats)


def _calls(entries: Sequence[Entry], batch: Batch) -> dict[Entry | str, Call]:
    """Returns one call for each entry. A loss is built once for both of its passes."""
    built = dict.fromkeys(entry.contender for entry in entries)
    losses: dict[Contender, Loss] = {contender: contender.build() for contender in built}
    return {entry: call_of(losses[entry.contender], batch, entry.contender.variant, entry.pass_) for entry in entries}


def _matmul(plan: Plan) -> Call:
    left, right = torch.randn(2, plan.matmul, plan.matmul, dtype=plan.dtype, device=plan.device)
    return lambda: left @ right


def _measured(block: Block, entry: Entry) -> Measurement:
    plan, size, contender = block.plan, block.size, entry.contender
    taken, rate = block.readings.get(entry), block.seconds(MATMUL)
    finding = block.findings.at(entry, size)
    if taken is None or isinstance(taken, Skipped) or rate is None:
        reason = taken.reason if isinstance(taken, Skipped) else finding.skipped
        return _skipped(plan, block.occasion, contender, size.width, reason, size=size, pass_=entry.pass_)
    flops = plan.subject.floor_flops(contender.variant, entry.pass_, size)
    flops_per_s = 2 * plan.matmul**3 / spread(rate).median
    over, own = _ours(block, entry)
    agreement, samples = block.findings.overall(contender).agreement, block.findings.in_samples(contender, size)
    more = {
        "peak_bytes": finding.peak_bytes,
        "floor_flops": flops,
        "eff": flops / (spread(taken).median * flops_per_s),
        "matmul_flops_per_s": flops_per_s,
        "agreement": agreement and asdict(agreement),
        "sampled": samples and samples.sampled and asdict(samples.sampled),
    }
    about = _about(plan, contender, size.width, size=size, pass_=entry.pass_, more=more)
    return measured(
        block.occasion, taken, **about, ratios=None if own is None else {f"over {over}": ratios(taken, own)}
    )


def _ours(block: Block, entry: Entry) -> tuple[str | None, list[float] | None]:
    """Returns the fastest of our backends that ran the same in these rounds, and its readings."""
    for name in OURS:
        for other in block.readings:
            if isinstance(other, Entry) and other.contender.name == name and _alike(other, entry):
                own = block.seconds(other)
                if own is not None:
                    return name, own
    return None, None


def _alike(ours: Entry, entry: Entry) -> bool:
    """Returns whether `ours` computes in the same pass what `entry` does, or the plain loss for another function."""
    variant = entry.contender.variant
    wanted = variant if variant.function is None else PLAIN
    return ours.contender.variant == wanted and ours.pass_ == entry.pass_


def _skipped(
    plan: Plan,
    occasion: Occasion,
    contender: Contender,
    width: int,
    reason: str | None,
    *,
    size: Size | None = None,
    pass_: Pass | None = None,
) -> Measurement:
    about = _about(plan, contender, width, size=size, pass_=pass_, more={})
    return measured(occasion, Skipped(reason or "no reading of the matrix product"), **about)


def _about(
    plan: Plan, contender: Contender, width: int, *, size: Size | None, pass_: Pass | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    variant = contender.variant
    what = {"objective": variant.objective, "mining": variant.mining_in_words, "function": variant.function}
    return {
        "what": plan.subject.what,
        "contender": contender.name,
        "setting": setting_of(variant, pass_, width, plan.dtype_name, size),
        "unit": "s",
        "versions": versions((*PACKAGES, *([contender.package] if contender.package else []))),
        "more": {**what, **more},
    }
