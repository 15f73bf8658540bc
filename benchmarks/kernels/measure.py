"""The measurement: contenders are probed one by one, then timed in common rounds, size by size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.harness.measurement import ratios, spread

from .machine import Occasion, versions
from .outcome import Skipped
from .passes import call_of
from .probe import Finding, Job, Place, probe
from .record import Line
from .size import Size
from .subject import OURS, Batch, Contender, Loss, Subject
from .timing import Call, clock_of, in_rounds
from .variants import PASSES, PLAIN, Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure; `matmul` is the side of the square product whose rate is the yardstick."""

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
    """A participant of the rounds."""

    contender: Contender
    pass_: Pass


# The participant that gives the rate of the machine.
MATMUL = "matmul"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the contenders' own processes said, by name and place."""

    found: Mapping[tuple[str, Place], Finding]

    def overall(self, contender: Contender) -> Finding:
        return self.found[contender.name, (contender.variant.name, None, None)]

    def at(self, entry: Entry, size: Size) -> Finding:
        return self.found[entry.contender.name, (entry.contender.variant.name, size, entry.pass_)]

    def in_samples(self, contender: Contender, size: Size) -> Finding | None:
        return self.found.get((contender.name, (contender.variant.name, size, None)))


@dataclass(frozen=True, slots=True)
class Block:
    """All readings at one size; those of an entry whose own process did not get through are missing."""

    plan: Plan
    occasion: Occasion
    findings: Findings
    size: Size
    readings: Mapping[Entry | str, list[float] | Skipped]

    def seconds(self, entry: Entry | str) -> list[float] | None:
        taken = self.readings.get(entry)
        return None if isinstance(taken, Skipped) else taken


def measure(plan: Plan, occasion: Occasion) -> Iterator[Line]:
    """Lines as they are made, so that a run that is cut short leaves what it had."""
    for width in dict.fromkeys(size.width for size in plan.sizes):
        sizes = [size for size in plan.sizes if size.width == width]
        findings = _probe_all(plan, sizes)
        able = [contender for contender in plan.contenders if findings.overall(contender).skipped is None]
        for contender in plan.contenders:
            if contender not in able:
                yield _skipped_line(plan, occasion, contender, width, findings.overall(contender).skipped)
        entries = [Entry(each, pass_) for pass_ in PASSES for each in able if pass_ in each.passes]
        for size in sizes if entries else ():
            block = Block(plan, occasion, findings, size, _readings(plan, findings, entries, size))
            yield from (_line(block, entry) for entry in entries)


def _probe_all(plan: Plan, sizes: Sequence[Size]) -> Findings:
    """Of all contenders at `sizes`, which are of one width."""
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
    """One call for each entry; a loss is built once for both of its passes."""
    built = dict.fromkeys(entry.contender for entry in entries)
    losses: dict[Contender, Loss] = {contender: contender.build() for contender in built}
    return {entry: call_of(losses[entry.contender], batch, entry.contender.variant, entry.pass_) for entry in entries}


def _matmul(plan: Plan) -> Call:
    left, right = torch.randn(2, plan.matmul, plan.matmul, dtype=plan.dtype, device=plan.device)
    return lambda: left @ right


def _line(block: Block, entry: Entry) -> Line:
    taken, rate = block.readings.get(entry), block.seconds(MATMUL)
    finding = block.findings.at(entry, block.size)
    if taken is None or isinstance(taken, Skipped) or rate is None:
        reason = taken.reason if isinstance(taken, Skipped) else finding.skipped
        return _skipped_line(
            block.plan, block.occasion, entry.contender, block.size.width, reason, size=block.size, pass_=entry.pass_
        )
    variant = entry.contender.variant
    flops = block.plan.subject.floor_flops(variant, entry.pass_, block.size)
    flops_per_s = 2 * block.plan.matmul**3 / spread(rate).median
    ratio_to, own = _ours(block, entry)
    samples = block.findings.in_samples(entry.contender, block.size)
    return Line(
        what=block.plan.subject.what,
        contender=entry.contender.name,
        variant=variant.name,
        objective=variant.objective,
        mining=variant.mining_in_words,
        function=variant.function,
        pass_=entry.pass_,
        rows=block.size.rows,
        patches=block.size.patches,
        sentences=block.size.sentences,
        width=block.size.width,
        dtype=block.plan.dtype_name,
        seconds=spread(taken),
        repetitions=len(taken),
        ratio=None if own is None else spread(ratios(taken, own)),
        ratio_to=ratio_to,
        peak_bytes=finding.peak_bytes,
        floor_flops=flops,
        eff=flops / (spread(taken).median * flops_per_s),
        matmul_flops_per_s=flops_per_s,
        agreement=block.findings.overall(entry.contender).agreement,
        sampled=None if samples is None else samples.sampled,
        device=block.occasion.device,
        versions=versions(entry.contender.package),
        commit=block.occasion.commit,
        date=block.occasion.date,
        command=block.occasion.command,
    )


def _ours(block: Block, entry: Entry) -> tuple[str | None, list[float] | None]:
    """The fastest kind of ours that ran alike in these rounds, and its readings."""
    for name in OURS:
        for other in block.readings:
            if isinstance(other, Entry) and other.contender.name == name and _alike(other, entry):
                own = block.seconds(other)
                if own is not None:
                    return name, own
    return None, None


def _alike(ours: Entry, entry: Entry) -> bool:
    """Whether in the same pass `ours` does what `entry` does, or the plain loss if that is another function."""
    variant = entry.contender.variant
    wanted = variant if variant.function is None else PLAIN
    return ours.contender.variant == wanted and ours.pass_ == entry.pass_


def _skipped_line(
    plan: Plan,
    occasion: Occasion,
    contender: Contender,
    width: int,
    reason: str | None,
    *,
    size: Size | None = None,
    pass_: Pass | None = None,
) -> Line:
    return Line(
        what=plan.subject.what,
        contender=contender.name,
        variant=contender.variant.name,
        objective=contender.variant.objective,
        mining=contender.variant.mining_in_words,
        function=contender.variant.function,
        pass_=pass_,
        rows=None if size is None else size.rows,
        patches=None if size is None else size.patches,
        sentences=None if size is None else size.sentences,
        width=width,
        dtype=plan.dtype_name,
        skipped=reason or "no reading of the matrix product",
        device=occasion.device,
        versions=versions(contender.package),
        commit=occasion.commit,
        date=occasion.date,
        command=occasion.command,
    )
