"""Measures what many shards cost: memory of a reader, time to its first batch, the plan of a thousand ranks."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from emocap_shards.manifest import Manifest, Shard, read_manifest
from emocap_shards.order import Order, ShardLayout
from emocap_shards.plan import rank_slice
from emocap_shards.store import open_store

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, spread
from benchmarks.harness.rounds import Skipped

from .dataset import Datasets
from .host import OURS, HostError, Pythons, System, once, systems, versions_of
from .hosts.task import Task
from .place import FILE, Place

MEMORY, MANIFEST, PLAN = "memory of a reader", "seconds to read the manifest", "seconds to plan a step"
BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Holds the numbers of shards, and of ranks with 8 samples in each step."""

    shards: tuple[int, ...]
    ranks: int
    rounds: int


def measure(plan: Plan, one: Datasets, work: Path, pythons: Pythons, occasion: Occasion) -> Iterator[Measurement]:
    """Measures datasets of many shards, which are links to the shard of `one` under other names."""
    for number in plan.shards:
        place = _many(one, work / f"shards-{number}", number, pythons)
        for system in systems(pythons):
            yield _reader(system, place, number, plan.rounds, pythons, occasion)
        yield _manifest(place, number, plan.rounds, occasion)
        yield _planned(place, number, plan, occasion)


def _reader(
    system: System, place: Place, number: int, rounds: int, pythons: Pythons, occasion: Occasion
) -> Measurement:
    setting = {"shards": number, "batches": BATCHES, "store": FILE}
    about: dict[str, Any] = {"what": MEMORY, "contender": system.name, "setting": setting, "unit": "bytes of USS"}
    about["versions"] = versions_of(system, pythons)
    with place.task(system, samples=number, workers=0, batches=BATCHES) as fields:
        try:
            found = [once(system, Task(**fields), pythons, place.environment)[1] for _ in range(rounds)]
        except HostError as error:
            return measured(occasion, Skipped(str(error)), **about)
    more = {
        "uss_with_imports_bytes": spread([each.uss_bytes for each in found]),
        "rss_with_imports_bytes": spread([each.rss_bytes for each in found]),
        "first_batch_s": spread([each.first_s for each in found]),
    }
    grown = [each.uss_bytes - each.bare_uss_bytes for each in found]
    return measured(occasion, grown, **about, more=more)


def _manifest(place: Place, number: int, rounds: int, occasion: Occasion) -> Measurement:
    folder = f"{place.root}/{OURS.format}"
    return measured(
        occasion,
        [_seconds(lambda: read_manifest(folder)) for _ in range(rounds)],
        what=MANIFEST,
        contender=OURS.name,
        setting={"shards": number},
        unit="s",
        more={"manifest_bytes": os.path.getsize(f"{folder}/manifest.json")},  # noqa: PTH202 - root is a string
        versions=versions(OURS.packages),
    )


def _planned(place: Place, number: int, plan: Plan, occasion: Occasion) -> Measurement:
    """Times the sample ids of every rank's next step: the first step of an epoch, and the one after it."""
    layout = ShardLayout(read_manifest(f"{place.root}/{OURS.format}").counts)
    first: list[float] = []
    next_: list[float] = []
    for epoch in range(plan.rounds):
        order = Order(layout, 0, epoch, 1 << 14)
        first.append(_seconds(lambda order=order: _slices(order, 0, plan.ranks)))
        next_.append(_seconds(lambda order=order: _slices(order, 1, plan.ranks)))
    return measured(
        occasion,
        first,
        what=PLAN,
        contender=OURS.name,
        setting={"shards": number, "ranks": plan.ranks, "batch": 8 * plan.ranks},
        unit="s",
        more={"next_step_s": spread(next_)},
        versions=versions(OURS.packages),
    )


def _slices(order: Order, step: int, ranks: int) -> list[np.ndarray]:
    batch = 8 * ranks
    ids = np.sort(order.ids(step * batch, (step + 1) * batch))
    return [ids[rank_slice(batch, rank, ranks)] for rank in range(ranks)]


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _many(one: Datasets, folder: Path, number: int, pythons: Pythons) -> Place:
    """Yields datasets in which one shard occurs many times; those of an earlier run are reused."""
    tars = folder / "tars"
    names = [f"copy-{copy:06d}" for copy in range(number)]
    if not (folder / "done").exists():
        for kind in ("tars", "mds", "lit") if pythons.has_peers else ("tars",):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        _copy_ours(one, tars, names)
        if pythons.has_peers:
            _copy_mosaic(one.at("mds"), folder / "mds", names)
            _copy_litdata(one.at("lit"), folder / "lit", names)
        (folder / "done").touch()
    return Place(FILE, str(folder), str(folder), tuple(f"{tars}/{name}.tar" for name in names), folder)


def _copy_ours(one: Datasets, folder: Path, names: list[str]) -> None:
    (shard,) = read_manifest(str(one.at("tars"))).shards
    _link(one.at("tars") / shard.index_path, folder / shard.index_path)
    rows: list[Shard] = []
    for name in names:
        _link(one.at("tars") / shard.path, folder / f"{name}.tar")
        rows.append(replace(shard, path=f"{name}.tar"))
    (folder / "manifest.json").unlink(missing_ok=True)
    Manifest(rows).write(open_store(folder))


def _copy_mosaic(one: Path, folder: Path, names: list[str]) -> None:
    index = json.loads((one / "index.json").read_text())
    shard = index["shards"][0]
    source = one / shard["raw_data"]["basename"]
    rows = [{**shard, "raw_data": {**shard["raw_data"], "basename": f"{name}.mds"}} for name in names]
    for name in names:
        _link(source, folder / f"{name}.mds")
    (folder / "index.json").write_text(json.dumps({**index, "shards": rows}))


def _copy_litdata(one: Path, folder: Path, names: list[str]) -> None:
    index = json.loads((one / "index.json").read_text())
    chunk = index["chunks"][0]
    for name in names:
        _link(one / chunk["filename"], folder / f"{name}.bin")
    rows = [{**chunk, "filename": f"{name}.bin"} for name in names]
    (folder / "index.json").write_text(json.dumps({**index, "chunks": rows}))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source)
