"""Times the first batch in a fresh process: from the beginning of an epoch, and from far within it."""

from collections.abc import Iterator
from functools import partial

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement, measured, spread
from benchmarks.harness.rounds import Skipped, in_rounds

from .dataset import Datasets
from .host import HostError, Pythons, System, once, systems, versions_of
from .hosts.task import BATCH, Task
from .place import Place

WHAT = "seconds to the first batch"
RESUMED_AT = 0.9

# Seconds after the imports, and from the start of the process.
Times = tuple[float, float]


def measure(
    datasets: Datasets, place: Place, pythons: Pythons, rounds: int, occasion: Occasion
) -> Iterator[Measurement]:
    """Reads shuffled batches of decoded samples in one process."""
    resumed = int(RESUMED_AT * datasets.samples) // BATCH * BATCH
    for position in (0, resumed):
        setting = {"store": place.store, "position": position, "samples": datasets.samples, "batch": BATCH}
        calls = {system: partial(_read, system, datasets, place, pythons, position) for system in systems(pythons)}
        for system, taken in in_rounds(calls, rounds=rounds).items():
            skipped = isinstance(taken, Skipped)
            yield measured(
                occasion,
                taken if skipped else [opened for opened, _ in taken],
                what=WHAT,
                contender=system.name,
                setting=setting,
                unit="s",
                more=None if skipped else {"with_start_and_imports_s": spread([started for _, started in taken])},
                versions=versions_of(system, pythons),
            )


def _read(system: System, datasets: Datasets, place: Place, pythons: Pythons, position: int) -> Times | Skipped:
    with place.task(system, samples=datasets.samples, workers=0, batches=1, position=position) as fields:
        try:
            begin, found = once(system, Task(**fields), pythons, place.environment)
        except HostError as error:
            return Skipped(str(error))
    return found.first_s, found.moments["first"] - begin
