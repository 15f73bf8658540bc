"""Tests a pack that is interrupted at any point and started again."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emocap_shards.errors import ManifestError, RecordError, StoreError
from emocap_shards.manifest import read_manifest
from emocap_shards.store import open_store
from emocap_shards.store.folder import FolderStore
from emocap_shards.writer import write_shards
from emocap_shards.writing.duplicates import DuplicateConfig
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.prepare import PrepareConfig
from emocap_shards.writing.row import BadRow
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.choice import open_source
from pack_cases import files_of, packed, table_of, table_row, write_lines
from shard_cases import record, records

OPTIONS = PackConfig(
    ShardSize(4), PrepareConfig(fingerprints=True), duplicates=DuplicateConfig(bits=0, drop=True), skip_bad=20
)


class _PlugPulled(BaseException):
    """Imitates a power cut: it is not an `Exception`, so no handler of the product catches it."""


class _Unplugged:
    """Yields the rows of a source before row `after`, and then raises `_PlugPulled`."""

    total = None

    def __init__(self, source, after):
        self._source, self._after = source, after

    def rows(self):
        for number, row in enumerate(self._source.rows()):
            if number == self._after:
                raise _PlugPulled
            yield row


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a source of forty rows, some of which are bad, duplicates, or have the key of another row."""
    table = table_of(tmp_path_factory.mktemp("source"), 40)
    changes = {3: {"image": "9.html"}, 9: {"image": "8.png", "key": "again"}, 12: {"key": "1"}, 13: {"image": 7}}
    return open_source(write_lines(table, [table_row(number, **changes.get(number, {})) for number in range(40)]))


@pytest.fixture(scope="module")
def unbroken(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    pack(source, out, OPTIONS)
    return files_of(out)


@pytest.mark.parametrize("after", range(0, 40, 3))
def test_interrupted_at_any_row_and_started_again_the_bytes_are_the_same(source, unbroken, tmp_path, after):
    with pytest.raises(_PlugPulled):
        pack(_Unplugged(source, after), tmp_path, OPTIONS)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*.tar")}
    told = []
    resumed = pack(source, tmp_path, OPTIONS, progress=told.append)
    assert told[-1].bytes == resumed.manifest.total_bytes
    assert files_of(tmp_path) == unbroken
    assert resumed.resumed == len(before) == (after - sum(row < after for row in (3, 9, 12, 13))) // 4
    for name, written in before.items():
        assert (tmp_path / name).stat().st_mtime_ns == written


@pytest.mark.parametrize("fatal", range(1, 19, 2))
def test_every_write_to_the_store_may_be_the_last_one(source, unbroken, tmp_path, monkeypatch, fatal):
    """The write number `fatal` fails, of an index, the journal or a report. The next run resumes."""
    put, calls = FolderStore.put, []

    def failing(store, path, data):
        calls.append(path)
        if len(calls) == fatal:
            raise StoreError(f"{path}: the disk is full")
        put(store, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", failing)
        with pytest.raises(StoreError, match="the disk is full"):
            pack(source, tmp_path, OPTIONS)
    pack(source, tmp_path, OPTIONS)
    assert files_of(tmp_path) == unbroken


def test_a_shard_that_is_not_there_in_full_is_made_again_and_what_follows_too(source, unbroken, tmp_path):
    with pytest.raises(_PlugPulled):
        pack(_Unplugged(source, 35), tmp_path, OPTIONS)
    shard = tmp_path / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert pack(source, tmp_path, OPTIONS).resumed == 2
    assert files_of(tmp_path) == unbroken


def test_a_journal_that_a_kill_left_after_a_manifest_is_cleared(source, unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "delete_tree", _pull_the_plug)
        with pytest.raises(_PlugPulled):
            pack(source, tmp_path, OPTIONS)
    assert (tmp_path / "journal").exists()
    with pytest.raises(ManifestError, match="holds a dataset already"):
        pack(source, tmp_path, OPTIONS)
    assert files_of(tmp_path) == unbroken


def test_a_journal_that_cannot_be_cleared_is_a_warning(source, tmp_path, monkeypatch, caplog):
    def refused(store, path):
        raise StoreError(f"{path}: delete is not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "delete_tree", refused)
        done = pack(source, tmp_path, OPTIONS)
        with pytest.raises(ManifestError, match="holds a dataset already"):
            pack(source, tmp_path, OPTIONS)
    assert read_manifest(tmp_path) == done.manifest
    assert [line.levelname for line in caplog.records] == ["WARNING", "WARNING"]
    assert "journal: delete is not allowed" in caplog.text


def test_of_two_packs_that_write_different_shards_none_is_published(tmp_path):
    """The second pack begins before the first one has a shard. Later its shards replace two of the first pack."""
    started, go_on = threading.Event(), threading.Event()

    def others():
        started.set()
        go_on.wait(30)
        yield from records(20)[10:14]
        raise _PlugPulled

    def own(thread):
        second = thread.submit(write_shards, others(), tmp_path, samples_per_shard=2)
        started.wait(30)
        yield from records(8)[:7]
        go_on.set()
        with pytest.raises(_PlugPulled):
            second.result()
        yield record(7)

    with (
        ThreadPoolExecutor(1) as thread,
        pytest.raises(RecordError, match=r"another pack writes to .* delete the files there"),
    ):
        write_shards(own(thread), tmp_path, samples_per_shard=2)
    assert not (tmp_path / "manifest.json").exists()
    assert len(list((tmp_path / "journal").iterdir())) == 4


def _pull_the_plug(*_):
    raise _PlugPulled


@pytest.fixture
def half(tmp_path):
    """Makes a table of twelve rows and an unfinished pack of it; returns the table."""
    table = table_of(tmp_path / "in", 12)
    with pytest.raises(_PlugPulled):
        pack(_Unplugged(open_source(table), 9), tmp_path / "out", PackConfig(ShardSize(2)))
    return table


def test_other_options_are_refused_in_one_line_that_says_which(half, tmp_path):
    with pytest.raises(RecordError, match=r"unfinished pack with other options \(shard_samples=2 instead of 3\): give"):
        packed(half, tmp_path / "out", samples=3)
    with pytest.raises(RecordError, match=r"other options \(fingerprints=False instead of True\)"):
        packed(half, tmp_path / "out", samples=2, recipe=PrepareConfig(fingerprints=True))


@pytest.mark.parametrize("change", ["image", "caption", "fewer rows", "other order"])
def test_another_source_is_refused_in_one_line(half, tmp_path, change):
    rows = [table_row(number) for number in range(12)]
    if change == "image":
        (half.parent / "1.png").write_bytes((half.parent / "2.png").read_bytes())
    elif change == "caption":
        rows[1]["global"] = "Another."
    write_lines(half, {"fewer rows": rows[:1], "other order": rows[::-1]}.get(change, rows))
    with pytest.raises(RecordError, match=r"unfinished pack of another source .*shard-000000.tar have changed\): give"):
        packed(half, tmp_path / "out", samples=2)


def test_what_was_not_packed_yet_may_be_corrected(half, tmp_path):
    rows = [table_row(number) for number in range(11)] + [table_row(11, **{"global": "Corrected."})]
    assert packed(write_lines(half, rows), tmp_path / "out", samples=2).resumed == 4
    assert packed(half, tmp_path / "unbroken", samples=2).manifest == read_manifest(tmp_path / "out")


def test_a_bad_row_may_be_let_go_after_it_stopped_a_pack(tmp_path):
    table = table_of(tmp_path / "in", 8)
    (tmp_path / "in" / "6.png").unlink()
    with pytest.raises(RecordError, match=r"6.png cannot be read"):
        packed(table, tmp_path / "out", samples=2)
    done = packed(table, tmp_path / "out", samples=2, skip_bad=1)
    assert (done.resumed, done.manifest.samples) == (3, 7)


def test_a_journal_that_is_none_is_told(half, tmp_path):
    (tmp_path / "out" / "journal" / "shard-000001.json").write_text("{")
    with pytest.raises(RecordError, match=r"journal/shard-000001.json is not a journal of a pack"):
        packed(half, tmp_path / "out", samples=2)


def test_a_journal_entry_of_another_shard_is_told(half, tmp_path):
    journal = tmp_path / "out" / "journal"
    (journal / "shard-000001.json").write_bytes((journal / "shard-000000.json").read_bytes())
    with pytest.raises(
        RecordError, match=r"journal/shard-000001.json is not a journal of a pack .*belongs to shard-000000"
    ):
        packed(half, tmp_path / "out", samples=2)


def test_records_of_another_kind_are_refused_at_an_unfinished_dataset(tmp_path):
    def ends():
        yield from records(9)
        raise _PlugPulled

    with pytest.raises(_PlugPulled):
        write_shards(ends(), tmp_path, samples_per_shard=2)
    with pytest.raises(RecordError, match="of another source"):
        write_shards(records(9)[::-1], tmp_path, samples_per_shard=2)
    assert write_shards(records(9), tmp_path, samples_per_shard=2).samples == 9


SLOW = """
import sys, time
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.choice import open_source

class Slow:
    total = None
    def __init__(self, source):
        self.source = source
    def rows(self):
        for row in self.source.rows():
            time.sleep(0.01)
            yield row

if __name__ == "__main__":
    pack(Slow(open_source(sys.argv[1])), sys.argv[2], PackConfig(ShardSize(6)), processes=int(sys.argv[3]))
"""


def kill_once_there(script, table, out, *, shards, processes):
    """Runs the script, kills it with SIGKILL when `shards` shards are finished, and returns the ids of its children."""
    env = {**os.environ, "TMPDIR": str(script.parent)}
    run = subprocess.Popen([sys.executable, script, table, out, str(processes)], env=env)
    store = open_store(out)
    while not store.exists(f"journal/shard-{shards - 1:06d}.json"):
        assert run.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(signal.SIGKILL)
    run.wait()
    return children


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


def test_killed_with_its_workers_running_it_resumes_and_leaves_none_of_them(script, tmp_path):
    table, out = table_of(tmp_path / "in", 600), tmp_path / "out"
    children = kill_once_there(script, table, str(out), shards=2, processes=2)
    kill_once_there(script, table, str(out), shards=9, processes=1)
    done = pack(open_source(table), out, PackConfig(ShardSize(6)))
    assert done.resumed >= 9
    pack(open_source(table), tmp_path / "unbroken", PackConfig(ShardSize(6)))
    assert files_of_dataset(out) == files_of(tmp_path / "unbroken")
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlives the process it worked for"
        time.sleep(0.05)


def files_of_dataset(folder):
    """Returns the files without hidden ones, which a killed store leaves."""
    return {name: data for name, data in files_of(folder).items() if not name.rsplit("/")[-1].startswith(".")}


def test_a_pack_to_s3_is_killed_and_resumes(s3, script, tmp_path):
    table = table_of(tmp_path / "in", 200)
    kill_once_there(script, table, s3, shards=3, processes=1)
    done = pack(open_source(table), s3, PackConfig(ShardSize(6)))
    assert done.resumed >= 3
    local = pack(open_source(table), tmp_path / "local", PackConfig(ShardSize(6)))
    assert local.manifest == read_manifest(s3)
    store = open_store(s3)
    assert {entry.path: store.read(entry.path) for entry in store.list()} == files_of(tmp_path / "local")


def test_rows_that_were_never_read_have_a_stamp_of_their_own():
    assert BadRow("a:1", "no JSON").stamp() == BadRow("a:2", "no JSON").stamp() != BadRow("a:1", "no image").stamp()
