"""Injects a fault at every operation of a reader with a cache, on the store and on the cache's disk."""

import io
import os
from functools import partial
from pathlib import Path

import emocap_shards.segment as segment_module
import numpy as np
import pytest
from emocap_shards.cache import Cache
from emocap_shards.cache_ledger import CacheLedger
from emocap_shards.errors import StoreError
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Caption, Encoded, Record
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from fault_sweep import CountedStore, Counter, operations_of, struck, sweep, sweep_far
from PIL import Image

SAMPLES = 6
ROOM_BYTES = 1 << 20
OF_THE_DISK = ("ftruncate", "pwrite", "pread", "utime", "replace", "unlink", "mkdir")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("dataset"))

    def record(number: int) -> Record:
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "PNG")
        return Record(f"{number}", file.getvalue(), "png", Caption(f"Face {number}.", (), ""), {})

    write_shards(map(record, range(SAMPLES)), folder, samples_per_shard=3)
    return folder


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "SEGMENT_BYTES", 4000)


def read(url: str, cache: str, counter: Counter) -> None:
    """Reads every sample through the cache and asserts that each is right."""
    store = CountedStore(open_store(url), counter, far=True)
    reader = Reader(store, read_manifest(store), Cache(cache, ROOM_BYTES))
    found = reader.fetch(np.arange(SAMPLES))
    assert [each.key for each in found if isinstance(each, Encoded)] == [str(number) for number in range(SAMPLES)]


def read_from_a_bad_disk(url: str, cache: str, counter: Counter) -> None:
    """Reads as `read` does, but the counter counts the operations on the cache's disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OF_THE_DISK:
            patch.setattr(os, name, counter.wrapped(name, getattr(os, name)))
        read(url, cache, Counter())


def check(url: str, cache: str, fault: object) -> None:
    """Checks that the next reader gets every byte and fills the cache, so that the reader after it requests nothing."""
    read(url, cache, Counter())
    assert "read_ranges" not in operations_of(partial(read, url, cache)), str(fault)
    with CacheLedger(Path(cache), ROOM_BYTES).opened() as ledger:
        said = int(os.pread(ledger, 64, 0))
    files = list(Path(cache).glob("*/*"))
    assert all(path.suffix == ".seg" for path in files), f"{fault}: {files}"
    assert sum(path.stat().st_size for path in files) <= said <= ROOM_BYTES, str(fault)


def test_after_a_failure_or_kill_at_any_operation_of_the_store_the_next_reader_gets_every_byte(
    url: str, tmp_path: Path
) -> None:
    operations = operations_of(partial(read, url, str(tmp_path / "undisturbed")))
    assert "read_ranges" in operations
    endings = set()
    for number, fault in enumerate(sweep(operations)):
        cache = str(tmp_path / f"cache-{number}")
        endings.add(struck(partial(read, url, cache), fault, (StoreError,)))
        check(url, cache, fault)
    assert endings == {"killed", "failed"}


@pytest.mark.slow
def test_on_s3_the_next_reader_gets_every_byte_too(url: str, s3: str, tmp_path: Path) -> None:
    here, there = open_store(url), open_store(s3)
    for entry in here.list():
        there.put(entry.path, here.read(entry.path))
    endings = set()
    for number, fault in enumerate(sweep_far(operations_of(partial(read, s3, str(tmp_path / "undisturbed"))))):
        cache = str(tmp_path / f"cache-{number}")
        endings.add(struck(partial(read, s3, cache), fault, (StoreError,), forks=False))
        check(s3, cache, fault)
    assert endings == {"failed"}


def test_after_a_failure_at_any_disk_operation_a_reader_gets_every_byte_and_a_kill_blocks_no_other(
    url: str, tmp_path: Path
) -> None:
    operations = operations_of(partial(read_from_a_bad_disk, url, str(tmp_path / "undisturbed")))
    assert {"ftruncate", "pwrite"} < set(operations)
    endings = set()
    # To be killed before an operation is to be killed after the one before it.
    faults = [fault for fault in sweep(operations) if fault.after or not fault.kills]
    for number, fault in enumerate(faults):
        cache = str(tmp_path / f"cache-{number}")
        # The first use may refuse the folder with a line; later nothing of the cache may end a run.
        ending = struck(partial(read_from_a_bad_disk, url, cache), fault, (StoreError,), error=OSError)
        assert ending == "killed" or not fault.kills
        endings.add(ending)
        check(url, cache, fault)
    assert endings >= {"killed", "ended"}
