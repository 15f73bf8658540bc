"""Tests that `verify` reads ranges in several processes, reports progress, and handles stores that fail."""

import hashlib
import json
import os
import pickle

import pytest
from emocap_shards.errors import ShardsError, StoreError
from emocap_shards.index import load_index
from emocap_shards.inspecting import verify as module
from emocap_shards.inspecting.faults import Fault, FaultKind
from emocap_shards.inspecting.shard_pool import VerifyProgress
from emocap_shards.inspecting.tape import Tape
from emocap_shards.inspecting.verify import verify
from emocap_shards.store import open_store
from emocap_shards.store.folder import FolderStore
from emocap_shards.writer import write_shards
from hypothesis import given
from hypothesis import strategies as st
from shard_cases import encode, records
from verify_cases import FIRST, INDEX, LAST, SHARD, flip, kinds, only, swap


@pytest.fixture
def folder(tmp_path):
    write_shards(records(9), tmp_path, samples_per_shard=3)
    return tmp_path


@pytest.fixture
def slots(folder):
    return list(load_index((folder / INDEX).read_bytes(), shard=SHARD))


def test_a_shard_that_the_store_does_not_give_is_a_fault_and_the_others_are_still_checked(folder, monkeypatch):
    honest = FolderStore.read_range

    def refused(self, path, start, end):
        if path == FIRST:
            raise StoreError("no permission.")
        return honest(self, path, start, end)

    monkeypatch.setattr(FolderStore, "read_range", refused)
    flip(folder / LAST, 600)
    verdict = verify(folder)
    assert [(fault.kind, fault.shard) for fault in verdict.faults] == [
        (FaultKind.UNREADABLE, FIRST),
        (FaultKind.BYTES, LAST),
    ]
    assert verdict.lost == 4


def test_a_shard_without_index_that_the_store_does_not_give_is_lost_once(folder, monkeypatch):
    honest = FolderStore.read_range

    def refused(self, path, start, end):
        if path == SHARD:
            raise StoreError("no permission.")
        return honest(self, path, start, end)

    monkeypatch.setattr(FolderStore, "read_range", refused)
    (folder / INDEX).unlink()
    verdict = verify(folder)
    assert [(fault.kind, fault.shard, fault.lost) for fault in verdict.faults] == [
        (FaultKind.MISSING_INDEX, SHARD, 3),
        (FaultKind.UNREADABLE, SHARD, 0),
    ]
    assert verdict.lost == 3


def test_reads_that_differ_are_blamed_on_the_way(folder, monkeypatch):
    honest = FolderStore.read_range
    calls = []

    def first_time_wrong(self, path, start, end):
        part = bytearray(honest(self, path, start, end))
        calls.append(path)
        part[600] ^= len(calls) == 1
        return bytes(part)

    monkeypatch.setattr(FolderStore, "read_range", first_time_wrong)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (FaultKind.UNSTEADY, FIRST, 0)


def read_wrongly(monkeypatch, times):
    """Makes the first `times` reads of an index return wrong bytes, each time other ones."""
    honest, readings = FolderStore.read, []

    def read(self, path, **limits):
        data = bytearray(honest(self, path, **limits))
        if path == INDEX and len(readings) < times:
            readings.append(path)
            data[-1] ^= len(readings)
        return bytes(data)

    monkeypatch.setattr(FolderStore, "read", read)


def test_an_index_that_is_right_when_it_is_read_again_still_serves_to_check_the_samples(folder, monkeypatch):
    read_wrongly(monkeypatch, times=1)
    flip(folder / SHARD, 600)
    way, sample = verify(folder).faults
    assert (way.kind, way.shard, way.lost) == (FaultKind.UNSTEADY, SHARD, 0)
    assert INDEX in way.reason
    assert (sample.kind, sample.shard, sample.lost) == (FaultKind.BYTES, SHARD, 1)


def test_two_wrong_readings_of_an_index_that_differ_are_blamed_on_the_way(folder, monkeypatch):
    read_wrongly(monkeypatch, times=2)
    fault = only(verify(folder))
    assert (fault.kind, fault.shard, fault.lost) == (FaultKind.UNSTEADY, SHARD, 0)


def test_every_fault_is_told_when_it_is_found_and_many_are_counted_but_not_kept(folder, monkeypatch):
    monkeypatch.setattr(module, "MOST_FAULTS", 2)
    for name in (FIRST, SHARD, LAST):
        (folder / name).unlink()
    told: list[Fault] = []
    verdict = verify(folder, on_fault=told.append)
    assert (len(told), len(verdict.faults), verdict.kinds) == (3, 2, {FaultKind.MISSING_SHARD: 3})


def test_progress_ends_with_every_byte(folder):
    told: list[VerifyProgress] = []
    verdict = verify(folder, on_progress=told.append)
    assert told[-1] == VerifyProgress(3, 3, verdict.bytes, verdict.bytes)
    verify(folder, quick=True, on_progress=told.append)
    assert told[-1] == VerifyProgress(3, 3, 0, 0)


def test_processes_find_what_one_process_finds_and_in_the_same_order(folder):
    flip(folder / FIRST, 600)
    swap(folder / SHARD, folder / LAST)
    told: list[VerifyProgress] = []
    alone, together = verify(folder, processes=1), verify(folder, processes=2, on_progress=told.append)
    assert together.faults == alone.faults
    assert told[-1].bytes == alone.bytes


def test_a_process_that_dies_is_an_error_and_no_whole_dataset(folder, monkeypatch):
    monkeypatch.setattr(module, "open_store", lambda url: _Dying(str(url)))
    with pytest.raises(ShardsError, match="died"):
        verify(folder, processes=2)


class _Dying(FolderStore):
    """Ends the process that reads a shard."""

    def read_range(self, *_: object) -> bytes:
        os._exit(1)


def test_an_object_store_is_verified_too(tmp_path):
    url = f"memory://{tmp_path.name}-verify"
    write_shards(records(5), url, samples_per_shard=3)
    assert verify(url).whole
    store = open_store(url)
    store.put(FIRST, store.read(FIRST)[:700])
    assert kinds(verify(url)) == {FaultKind.SIZE, FaultKind.CUT}


@given(range_bytes=st.integers(1, 5000), steps=st.lists(st.integers(0, 700), max_size=12), back=st.booleans())
def test_a_tape_gives_the_same_bytes_in_ranges_of_any_size(tmp_path_factory, range_bytes, steps, back):
    data = encode(3, size=32)
    root = tmp_path_factory.mktemp("tape")
    (root / "file").write_bytes(data)
    told: list[int] = []
    tape = Tape(open_store(root), "file", told.append, range_bytes=range_bytes)
    position = 0
    for step in steps:
        assert tape.take(position, position + step) == data[position : position + step]
        position += step
    if back:
        assert tape.take(3, 40) == data[3:40]
        position = max(position, 40)
    assert b"".join(tape.rest(position)) == data[position:]
    assert tape.sha256() == hashlib.sha256(data).hexdigest()
    assert sum(told) == tape.position == len(data)


def test_a_tape_holds_one_range_and_one_sample_at_most(folder, slots):
    tape = Tape(open_store(folder), SHARD, lambda _: None, range_bytes=64)
    for slot in slots:
        tape.take(slot.offset, slot.offset + slot.length)
        assert len(tape._held) < slot.length + 2 * 64


def test_every_kind_has_a_cure():
    assert all(kind.cure for kind in FaultKind)


def test_a_kind_is_its_name_and_stays_itself_between_processes():
    assert str(FaultKind.CUT) == FaultKind.CUT.value == f"{FaultKind.CUT}" == "cut shard"
    assert pickle.loads(pickle.dumps(FaultKind.CUT)) is FaultKind.CUT


def test_a_verdict_as_json_is_plain(folder):
    (folder / SHARD).unlink()
    values = json.loads(json.dumps(verify(folder).to_json()))
    assert values["whole"] is False
    assert values["kinds"] == {"missing shard": 1}
    assert values["lost"] == 3
    assert values["faults"][0]["shard"] == SHARD
    assert set(values["faults"][0]) == {"kind", "shard", "key", "reason", "cure"}
