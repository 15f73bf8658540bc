"""Samples per second and CPU time of a whole epoch: ours, the peers, and libjpeg-turbo alone, in common rounds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from benchmarks.harness.measurement import ratios, spread
from benchmarks.harness.record import Line, Occasion, line

from .dataset import Datasets
from .host import BARE, OURS, Host, HostError, Pythons, System, systems, versions_of
from .hosts.task import Pass, Task
from .place import Place

WHAT = "samples per second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Args:
        places: Of the samples that are decoded, and of those that are not, which are read faster and so are more.
        workers: Numbers of processes.
        shuffle: With what each system shuffles by default.
        delivered: Batches go to the main process; otherwise the loader processes keep them.
        decoder: "simplejpeg" for all, or "pillow", which the peers' own decoders are.
    """

    decoded: tuple[Datasets, Place]
    raw: tuple[Datasets, Place]
    workers: Sequence[int]
    shuffle: bool
    delivered: bool
    rounds: int
    decode: Sequence[bool] = (False, True)
    decoder: str = "simplejpeg"


@dataclass
class Readings:
    """Of one contender at one setting; a failure ends its part."""

    system: System
    setting: Mapping[str, Any]
    passes: list[Pass] = field(default_factory=list[Pass])
    failure: str | None = None

    @property
    def rates(self) -> list[float]:
        return [each.samples / each.seconds for each in self.passes]

    @property
    def cpu_s_per_1000(self) -> list[float]:
        return [each.cpu_s / each.samples * 1000 for each in self.passes]


def measure(plan: Plan, pythons: Pythons, occasion: Occasion) -> Iterator[Line]:
    """A line for each contender at each setting, those of a setting after its last round."""
    environment = plan.raw[1].environment
    with ExitStack() as stack:
        entered = (*systems(pythons), BARE)
        hosts = {each: stack.enter_context(Host(each, pythons, environment)) for each in entered}
        taken = [
            [Readings(system, _setting(plan, decode, workers)) for system in entered if decode or system != BARE]
            for decode, workers in product(plan.decode, plan.workers)
        ]
        for number in range(plan.rounds):
            for readings in taken:
                # The order moves on, so that nobody always follows the same neighbour.
                first = number % len(readings)
                for each in readings[first:] + readings[:first]:
                    _read(each, plan, hosts[each.system])
    for readings in taken:
        yield from _lines(readings, pythons, occasion)


def _setting(plan: Plan, decode: bool, workers: int) -> dict[str, Any]:
    datasets, place = plan.decoded if decode else plan.raw
    return {
        "store": place.store,
        "decode": decode,
        "workers": workers,
        "shuffle": plan.shuffle,
        "delivered": plan.delivered,
        "decoder": plan.decoder if decode else None,
        "samples": datasets.samples,
        "image_bytes": datasets.image_bytes,
        "batch": 256,
    }


def _read(readings: Readings, plan: Plan, host: Host) -> None:
    if readings.failure is not None:
        return
    decode = readings.setting["decode"]
    datasets, place = plan.decoded if decode else plan.raw
    with place.task(readings.system, samples=datasets.samples, decode=decode, decoder=plan.decoder) as fields:
        task = Task(**fields, workers=readings.setting["workers"], shuffle=plan.shuffle, delivered=plan.delivered)
        try:
            found = host.ask(task)
        except HostError as error:
            readings.failure = str(error)
            return
    if found.samples != datasets.samples:
        readings.failure = f"{found.samples} of {datasets.samples} samples came"
    readings.passes.append(found)


def _lines(readings: Sequence[Readings], pythons: Pythons, occasion: Occasion) -> Iterator[Line]:
    (ours,) = (each for each in readings if each.system == OURS)
    for each in readings:
        common = {"what": WHAT, "contender": each.system.name, "setting": each.setting, "unit": "samples/s"}
        about = {"versions": versions_of(each.system, pythons)}
        if each.failure is not None or ours.failure is not None:
            yield line(occasion, **common, **about, skipped=each.failure or f"ours: {ours.failure}")
            continue
        yield line(
            occasion,
            **common,
            **about,
            value=spread(each.rates),
            repetitions=len(each.rates),
            ratios={
                "ours over it": spread(ratios(ours.rates, each.rates)),
                "ours over it, CPU": spread(ratios(ours.cpu_s_per_1000, each.cpu_s_per_1000)),
            },
            more={"cpu_s_per_1000_samples": spread(each.cpu_s_per_1000)},
        )
