"""How long the first batch takes in a fresh process: from the beginning of an epoch, and far behind it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.measurement import spread
from benchmarks.harness.record import Line, Occasion, line

from .dataset import Datasets
from .host import HostError, Pythons, System, once, systems, versions_of
from .hosts.task import BATCH, Task
from .place import Place

WHAT = "seconds to the first batch"
RESUMED_AT = 0.9


@dataclass
class _Times:
    """Of one system: after the imports, and from the start of the process."""

    opened: list[float] = field(default_factory=list[float])
    started: list[float] = field(default_factory=list[float])
    failure: str | None = None


def measure(datasets: Datasets, place: Place, pythons: Pythons, rounds: int, occasion: Occasion) -> Iterator[Line]:
    """Batches of decoded samples, shuffled, read by the process itself."""
    resumed = int(RESUMED_AT * datasets.samples) // BATCH * BATCH
    for position in (0, resumed):
        taken = {system: _Times() for system in systems(pythons)}
        for number in range(rounds):
            order = list(taken)
            for system in order[number % len(order) :] + order[: number % len(order)]:
                _read(taken[system], system, datasets, place, pythons, position)
        setting = {"store": place.store, "position": position, "samples": datasets.samples, "batch": BATCH}
        for system, times in taken.items():
            about = {"contender": system.name, "setting": setting, "versions": versions_of(system, pythons)}
            yield _line(times, about, occasion)


def _read(times: _Times, system: System, datasets: Datasets, place: Place, pythons: Pythons, position: int) -> None:
    if times.failure is not None:
        return
    with place.task(system, samples=datasets.samples, workers=0, batches=1, position=position) as fields:
        try:
            begin, found = once(system, Task(**fields), pythons, place.environment)
        except HostError as error:
            times.failure = str(error)
            return
    times.opened.append(found.first_s)
    times.started.append(found.moments["first"] - begin)


def _line(times: _Times, about: dict[str, Any], occasion: Occasion) -> Line:
    about = {"what": WHAT, "unit": "s", **about}
    if times.failure is not None:
        return line(occasion, **about, skipped=times.failure)
    more = {"with_start_and_imports_s": spread(times.started)}
    return line(occasion, **about, value=spread(times.opened), repetitions=len(times.opened), more=more)
