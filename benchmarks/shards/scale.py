"""Measures the cost of many shards: a reader's memory, its time to the first batch, and the time to plan a step.

To plan a step is to compute which samples each rank reads in it. All shards of a dataset are links to one file, so a
hundred thousand of them need little space.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.order import Order, ShardLayout
from emocap_shards.plan import rank_slice
from emocap_shards.store import open_store

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, spread
from benchmarks.harness.rounds import Skipped, in_rounds, seconds_of

from .dataset import Datasets
from .host import OURS, Pythons, systems, versions_of
from .place import FILE, Place

MEMORY, MANIFEST, PLAN = "memory of a reader", "seconds to read the manifest", "seconds to plan a step"
BATCHES = 4


def measure(
    one: Datasets, work: Path, pythons: Pythons, occasion: Occasion, *, shards: tuple[int, ...], ranks: int, rounds: int
) -> Iterator[Measurement]:
    """Measures one dataset for each number of shards in `shards`. All shards are links to the single shard of `one`.

    The time to plan a step is measured for `ranks` ranks.
    """
    for number in shards:
        place = _many(one, work / f"shards-{number}", number, pythons)
        yield from _readers(place, number, rounds, pythons, occasion)
        yield from _ours(Path(place.root) / OURS.format, number, ranks, rounds, occasion)


def _readers(place: Place, number: int, rounds: int, pythons: Pythons, occasion: Occasion) -> Iterator[Measurement]:
    """Measures how much memory each library uses after a few batches, and the time to its first batch.

    The dataset has `number` shards.
    """
    fields = {"samples": number, "workers": 0, "batches": BATCHES}
    calls = {system: partial(place.read, system, pythons, **fields) for system in systems(pythons)}
    for system, taken in in_rounds(calls, rounds=rounds).items():
        about: dict[str, Any] = {
            "what": MEMORY,
            "contender": system.name,
            "setting": {"shards": number, "batches": BATCHES, "store": FILE},
            "unit": "bytes of USS",
            "versions": versions_of(system, pythons),
        }
        if isinstance(taken, Skipped):
            yield measured(occasion, taken, **about)
            continue
        passes = [each for each, _ in taken]
        more = {
            "uss_with_imports_bytes": spread([each.uss_bytes for each in passes]),
            "rss_with_imports_bytes": spread([each.rss_bytes for each in passes]),
            "first_batch_s": spread([each.first_s for each in passes]),
        }
        yield measured(occasion, [each.uss_bytes - each.bare_uss_bytes for each in passes], more=more, **about)


def _ours(folder: Path, number: int, ranks: int, rounds: int, occasion: Occasion) -> Iterator[Measurement]:
    """Measures the time to read our manifest, and the time to compute the sample ids of every rank for one step.

    A rank has 8 samples in a step. The first step of an epoch and the step after it are timed.
    """
    about: dict[str, Any] = {"contender": OURS.name, "unit": "s", "versions": versions(OURS.packages)}
    yield measured(
        occasion,
        [seconds_of(lambda: read_manifest(str(folder))) for _ in range(rounds)],
        what=MANIFEST,
        setting={"shards": number},
        more={"manifest_bytes": (folder / "manifest.json").stat().st_size},
        **about,
    )
    layout = ShardLayout(read_manifest(str(folder)).counts)
    orders = [Order(layout, 0, epoch, 1 << 14) for epoch in range(rounds)]
    steps = [[seconds_of(partial(_slices, order, step, ranks)) for step in (0, 1)] for order in orders]
    yield measured(
        occasion,
        [first for first, _ in steps],
        what=PLAN,
        setting={"shards": number, "ranks": ranks, "batch": 8 * ranks},
        more={"next_step_s": spread([second for _, second in steps])},
        **about,
    )


def _slices(order: Order, step: int, ranks: int) -> list[np.ndarray]:
    """Returns the sample ids of each rank in a step."""
    batch = 8 * ranks
    ids = np.sort(order.ids(step * batch, (step + 1) * batch))
    return [ids[rank_slice(batch, rank, ranks)] for rank in range(ranks)]


def _many(one: Datasets, folder: Path, number: int, pythons: Pythons) -> Place:
    """Returns the `Place` of a dataset in which one shard occurs `number` times, in the format of each library.

    The dataset is made unless an earlier run has left it in `folder`. `one` is the dataset that contains the shard.
    """
    names = [f"copy-{copy:06d}" for copy in range(number)]
    if not (folder / "done").exists():
        _copy_ours(one.folder / "tars", folder / "tars", names)
        if pythons.has_peers:
            _copy_mosaic(one.folder / "mds", folder / "mds", names)
            _copy_litdata(one.folder / "lit", folder / "lit", names)
        (folder / "done").touch()
    return Place(FILE, str(folder), str(folder), tuple(f"{folder}/tars/{name}.tar" for name in names), folder)


def _copy_ours(one: Path, folder: Path, names: list[str]) -> None:
    """Makes a dataset of ours with links to one shard under these names."""
    (shard,) = read_manifest(str(one)).shards
    _link(one / shard.index_path, folder, [shard.index_path])
    _link(one / shard.path, folder, [f"{name}.tar" for name in names])
    (folder / "manifest.json").unlink(missing_ok=True)
    Manifest([replace(shard, path=f"{name}.tar") for name in names]).write(open_store(folder))


def _copy_mosaic(one: Path, folder: Path, names: list[str]) -> None:
    """Makes an MDS dataset with links to one shard under these names."""
    index = json.loads((one / "index.json").read_text())
    shard = index["shards"][0]
    files = [f"{name}.mds" for name in names]
    _link(one / shard["raw_data"]["basename"], folder, files)
    rows = [{**shard, "raw_data": {**shard["raw_data"], "basename": file}} for file in files]
    (folder / "index.json").write_text(json.dumps({**index, "shards": rows}))


def _copy_litdata(one: Path, folder: Path, names: list[str]) -> None:
    """Makes a litdata dataset with links to one chunk under these names."""
    index = json.loads((one / "index.json").read_text())
    chunk = index["chunks"][0]
    files = [f"{name}.bin" for name in names]
    _link(one / chunk["filename"], folder, files)
    (folder / "index.json").write_text(json.dumps({**index, "chunks": [{**chunk, "filename": file} for file in files]}))


def _link(source: Path, folder: Path, names: list[str]) -> None:
    """Makes a link to `source` in `folder` for each name, and replaces links that an interrupted run has left."""
    for target in map(folder.joinpath, names):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source)
