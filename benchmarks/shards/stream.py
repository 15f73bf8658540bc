"""Measures samples per second and CPU time of an epoch in common rounds: ours, the peers, libjpeg-turbo alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import Skipped, in_rounds

from .dataset import Datasets
from .host import BARE, OURS, Host, HostError, Pythons, System, systems, versions_of
from .hosts.task import Pass, Task
from .place import Place

WHAT = "samples per second"

# Who reads, whether the samples are decoded, and by how many processes.
Key = tuple[System, bool, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a measurement.

    Args:
        places: The datasets with decoded and with raw samples. The second has more, since it is read faster.
        workers: Numbers of processes.
        shuffle: Whether each system shuffles with its defaults.
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


def measure(plan: Plan, pythons: Pythons, occasion: Occasion) -> Iterator[Measurement]:
    """Yields a measurement of each system at each setting, all of them after the last round."""
    entered = (*systems(pythons), BARE)
    settings = list(product(plan.decode, plan.workers))
    with ExitStack() as stack:
        hosts = {each: stack.enter_context(Host(each, pythons, plan.raw[1].environment)) for each in entered}
        groups: list[dict[Key, Callable[[], Pass | Skipped]]] = [
            {
                (system, decode, workers): partial(_read, plan, hosts[system], decode, workers)
                for system in entered
                if decode or system != BARE
            }
            for decode, workers in settings
        ]
        taken = in_rounds(*groups, rounds=plan.rounds)
    for (system, decode, workers), passes in taken.items():
        yield _measured(plan, system, decode, workers, passes, taken[OURS, decode, workers], pythons, occasion)


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


def _read(plan: Plan, host: Host, decode: bool, workers: int) -> Pass | Skipped:
    datasets, place = plan.decoded if decode else plan.raw
    with place.task(host.system, samples=datasets.samples, decode=decode, decoder=plan.decoder) as fields:
        try:
            found = host.ask(Task(**fields, workers=workers, shuffle=plan.shuffle, delivered=plan.delivered))
        except HostError as error:
            return Skipped(str(error))
    if found.samples != datasets.samples:
        return Skipped(f"{found.samples} of {datasets.samples} samples came")
    return found


def _measured(
    plan: Plan,
    system: System,
    decode: bool,
    workers: int,
    passes: list[Pass] | Skipped,
    ours: list[Pass] | Skipped,
    pythons: Pythons,
    occasion: Occasion,
) -> Measurement:
    about: dict[str, Any] = {
        "what": WHAT,
        "contender": system.name,
        "setting": _setting(plan, decode, workers),
        "unit": "samples/s",
        "versions": versions_of(system, pythons),
    }
    if isinstance(passes, Skipped):
        return measured(occasion, passes, **about)
    if isinstance(ours, Skipped):
        return measured(occasion, Skipped(f"ours: {ours.reason}"), **about)
    over = {
        "ours over it": ratios(_rates(ours), _rates(passes)),
        "ours over it, CPU": ratios(_cpu_s_per_1000(ours), _cpu_s_per_1000(passes)),
    }
    more = {"cpu_s_per_1000_samples": spread(_cpu_s_per_1000(passes))}
    return measured(occasion, _rates(passes), **about, ratios=over, more=more)


def _rates(passes: Sequence[Pass]) -> list[float]:
    return [each.samples / each.seconds for each in passes]


def _cpu_s_per_1000(passes: Sequence[Pass]) -> list[float]:
    return [each.cpu_s / each.samples * 1000 for each in passes]
