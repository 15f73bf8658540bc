"""Measures how systems (libraries) read a dataset: rate and CPU time of whole epochs, and time to the first batch.

Each round measures every system once. For this, a fresh process with an empty cache reads the dataset (`Place.read`).
docs/streaming-benchmarks.md says what is the same for all systems.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import Skipped, in_rounds

from .dataset import Datasets
from .host import BARE, OURS, Pythons, System, systems, versions_of
from .hosts.task import BATCH, Pass
from .place import Place

RATE, FIRST = "samples per second", "seconds to the first batch"
# The position, as a share of the epoch, at which a resumed reader begins.
RESUMED_AT = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """The plan of a measurement of several systems (libraries that read datasets).

    Attributes:
        sources: The dataset and its `Place` for decoded samples (True) and for raw samples (False). Raw samples are
            read faster, so their dataset is larger.
        workers: The numbers of loader processes. Each number is measured.
        shuffle: Whether each system shuffles, with its default settings.
        delivered: Whether batches are sent to the main process. Otherwise the loader processes only count the samples.
        rounds: The number of readings of each system.
    """

    sources: Mapping[bool, tuple[Datasets, Place]]
    workers: Sequence[int]
    shuffle: bool
    delivered: bool
    rounds: int


def epochs(plan: StreamPlan, pythons: Pythons, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the measurement of each system (library), and of the decoder libjpeg-turbo alone, in each setting.

    The settings are raw and decoded samples, both with each number of loader processes. libjpeg-turbo is measured only
    with decoded samples. Each of `plan.rounds` rounds measures every setting of every system once, so the first
    measurement is yielded after the last round.
    """
    entered = (*systems(pythons), BARE)
    groups = [
        {
            (system, decode, workers): partial(_read, plan, system, pythons, decode, workers)
            for system in entered
            if decode or system != BARE
        }
        for decode, workers in product((False, True), plan.workers)
    ]
    taken = in_rounds(*groups, rounds=plan.rounds)
    for (system, decode, workers), passes in taken.items():
        about = {
            "what": RATE,
            "contender": system.name,
            "setting": _setting(plan, decode, workers),
            "unit": "samples/s",
            "versions": versions_of(system, pythons),
        }
        yield _measured(occasion, passes, taken[OURS, decode, workers], about)


def _setting(plan: StreamPlan, decode: bool, workers: int) -> dict[str, Any]:
    """Returns the field `setting` of a record."""
    datasets, place = plan.sources[decode]
    return {
        "store": place.store,
        "decode": decode,
        "workers": workers,
        "shuffle": plan.shuffle,
        "delivered": plan.delivered,
        "decoder": "simplejpeg" if decode else None,
        "samples": datasets.samples,
        "image_bytes": datasets.image_bytes,
        "batch": BATCH,
    }


def _read(plan: StreamPlan, system: System, pythons: Pythons, decode: bool, workers: int) -> Pass | Skipped:
    """Reads an epoch with one system (library). Returns a `Skipped` if it fails or does not return all samples."""
    datasets, place = plan.sources[decode]
    fields = {"samples": datasets.samples, "decode": decode, "workers": workers}
    found = place.read(system, pythons, shuffle=plan.shuffle, delivered=plan.delivered, **fields)
    if isinstance(found, Skipped):
        return found
    read, _ = found
    if read.samples != datasets.samples:
        return Skipped(f"{read.samples} of {datasets.samples} samples came")
    return read


def _measured(
    occasion: Occasion, passes: list[Pass] | Skipped, ours: list[Pass] | Skipped, about: Mapping[str, Any]
) -> Measurement:
    """Returns the record of a system (library), with two ratios: our rate and CPU time, divided by those of the system.

    `passes` has a measurement of the system for each round, and `ours` those of our package in the same rounds. If one
    of them is a `Skipped`, the record holds its reason instead of values. `about` holds the other fields of the record.
    """
    if isinstance(passes, Skipped):
        return measured(occasion, passes, **about)
    if isinstance(ours, Skipped):
        return measured(occasion, Skipped(f"ours: {ours.reason}"), **about)
    rates, cpu_s = _rates(passes), _cpu_s_per_1000(passes)
    over = {
        "ours over it": ratios(_rates(ours), rates),
        "ours over it, CPU": ratios(_cpu_s_per_1000(ours), cpu_s),
    }
    return measured(occasion, rates, ratios=over, more={"cpu_s_per_1000_samples": spread(cpu_s)}, **about)


def _rates(passes: Sequence[Pass]) -> list[float]:
    """Returns the samples per second of each pass over a dataset."""
    return [each.samples / each.seconds for each in passes]


def _cpu_s_per_1000(passes: Sequence[Pass]) -> list[float]:
    """Returns the CPU seconds per 1,000 samples of each pass over a dataset."""
    return [each.cpu_s / each.samples * 1000 for each in passes]


def first_batches(
    datasets: Datasets, place: Place, pythons: Pythons, rounds: int, occasion: Occasion
) -> Iterator[Measurement]:
    """Measures how long each library needs for its first batch, at the beginning of an epoch and at `RESUMED_AT`.

    `RESUMED_AT` is the position of a resumed reader, as a share of the epoch. The main process reads the batch itself,
    without loader processes. The order of the samples is shuffled, and the samples are decoded.
    """
    resumed = int(RESUMED_AT * datasets.samples) // BATCH * BATCH
    for position in (0, resumed):
        setting = {"store": place.store, "position": position, "samples": datasets.samples, "batch": BATCH}
        fields = {"samples": datasets.samples, "batches": 1, "position": position, "workers": 0}
        calls = {system: partial(place.read, system, pythons, **fields) for system in systems(pythons)}
        for system, taken in in_rounds(calls, rounds=rounds).items():
            skipped = isinstance(taken, Skipped)
            yield measured(
                occasion,
                taken if skipped else [found.first_s for found, _ in taken],
                what=FIRST,
                contender=system.name,
                setting=setting,
                unit="s",
                more=None if skipped else {"with_start_and_imports_s": spread([started for _, started in taken])},
                versions=versions_of(system, pythons),
            )
