import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.store.folder import FolderStore
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_cases import record, records

SAMPLES = 23


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("dataset"))
    write_shards(records(SAMPLES), folder, samples_per_shard=4)
    return folder


@pytest.fixture(scope="module")
def stream(url):
    return Stream(url=url, global_batch=5, seed=3, window_samples=8)


def entry(rank_step):
    return [row.index for row in rank_step.samples], rank_step.cursor


def ledger(stream, steps, part=0, parts=1):
    """Returns the indexes and the cursor of each of the next steps."""
    return [entry(rank_step) for rank_step in islice(stream.steps(part, parts), steps)]


def global_ledger(stream, world, steps):
    """Returns the sample numbers and cursors of the steps over all ranks."""
    ranks = [ledger(replace(stream, rank=rank, world_size=world), steps) for rank in range(world)]
    return [([index for rows, _ in step for index in rows], step[0][1]) for step in zip(*ranks, strict=True)]


def test_resuming_at_every_point_continues_the_same_stream(stream):
    whole = ledger(stream, 12)
    for done, (_, cursor) in enumerate(whole[:-1], 1):
        assert ledger(replace(stream, start=cursor), 12 - done) == whole[done:]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_world_sees_the_same_steps(stream, world):
    assert global_ledger(stream, world, 7) == ledger(stream, 7)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 3), (3, 2), (4, 1), (2, 4)])
def test_an_epoch_is_exactly_once_wherever_it_stops_and_however_many_ranks_resume(stream, before, after, drop_last):
    stream = replace(stream, epochs=1, drop_last=drop_last)
    announced = SAMPLES // 5 * 5 if drop_last else SAMPLES
    first = global_ledger(stream, before, None)
    for done, (_, cursor) in enumerate(first, 1):
        rest = global_ledger(replace(stream, start=cursor), after, None)
        seen = [index for rows, _ in first[:done] + rest for index in rows]
        assert len(seen) == len(set(seen)) == announced


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_taken_in_turn_are_the_steps_in_order_also_after_a_resume(stream, parts):
    for start in (Cursor(), Cursor(0, 10), Cursor(0, 20), Cursor(1, 0)):
        here = replace(stream, start=start)
        workers = [here.steps(part, parts) for part in range(parts)]
        turns = [next(workers[turn % parts]) for turn in range(9)]
        assert [entry(rank_step) for rank_step in turns] == ledger(here, 9)


def test_a_part_that_does_not_exist_is_refused_by_its_own_name(stream):
    with pytest.raises(PlanError, match="part=2 of parts=2"):
        next(stream.steps(2, 2))


@settings(max_examples=25)
@given(
    world=st.sampled_from([1, 2, 3, 4, 8]),
    parts=st.integers(1, 4),
    stop=st.integers(0, 6),
    global_batch=st.integers(1, 9),
)
def test_any_rank_and_worker_resumes_anywhere(stream, world, parts, stop, global_batch):
    here = replace(stream, global_batch=global_batch, world_size=world, rank=world - 1)
    whole = ledger(here, stop + 4)
    start = whole[stop - 1][1] if stop else Cursor()
    for part in range(parts):
        assert ledger(replace(here, start=start), 1, part, parts) == whole[stop + part :][:1]


def test_another_global_batch_after_a_resume_is_still_exactly_once(stream):
    first = ledger(stream, 2)
    rest = ledger(replace(stream, start=first[-1][1], global_batch=4, epochs=1), None)
    assert sorted(index for rows, _ in first + rest for index in rows) == list(range(SAMPLES))


def test_the_cursor_rolls_over_at_the_end_of_an_epoch(stream):
    cursors = [cursor for _, cursor in ledger(stream, 6)]
    assert cursors == [Cursor(0, 5), Cursor(0, 10), Cursor(0, 15), Cursor(0, 20), Cursor(1, 0), Cursor(1, 5)]


def test_epochs_end_the_stream_and_differ_in_order(stream):
    steps = ledger(replace(stream, epochs=2), None)
    assert len(steps) == 10
    assert steps[0][0] != steps[5][0]


def test_samples_are_what_was_written(stream):
    for rank_step in replace(stream, epochs=1).steps():
        for row in rank_step.samples:
            written = record(row.index)
            assert (row.key, row.caption, row.labels) == (written.key, written.caption, written.labels)
            assert row.image.shape == (8, 8, 3)
            assert row.image.dtype == np.uint8


def test_evaluation_reads_in_the_order_of_the_manifest(stream):
    steps = ledger(replace(stream, shuffle=False, epochs=1), None)
    assert [index for rows, _ in steps for index in rows] == list(range(SAMPLES))


def test_read_gives_the_samples_asked_for_in_that_order_and_repeated(stream):
    assert [row.index for row in stream.read([17, 0, 5, 17])] == [17, 0, 5, 17]


def test_read_refuses_a_sample_that_is_not_there(stream):
    with pytest.raises(IndexError, match="sample 23 of 23"):
        stream.read([23])


def test_neighbours_are_read_in_one_range(stream, monkeypatch):
    asked = []
    honest = FolderStore.read_ranges
    monkeypatch.setattr(FolderStore, "read_ranges", lambda self, spans: asked.append(spans) or honest(self, spans))
    stream.read(range(8))
    assert [path for path, _, _ in asked[0]] == ["shard-000000.tar", "shard-000001.tar"]


def test_a_stream_pickles_and_continues(stream):
    assert ledger(pickle.loads(pickle.dumps(stream)), 6) == ledger(stream, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 2, "world_size": 2},
        {"world_size": 0},
        {"local_world_size": 0},
        {"local_world_size": 2, "world_size": 1},
        {"global_batch": 0},
        {"window_samples": 0},
        {"seed": -1},
        {"error_budget": -1},
    ],
)
def test_impossible_numbers_are_refused_at_birth(stream, wrong):
    with pytest.raises(PlanError):
        replace(stream, **wrong)


def test_a_part_that_does_not_exist_is_refused(stream):
    with pytest.raises(PlanError, match="part=2 of parts=2"):
        next(stream.steps(2, 2))


def test_reading_imports_neither_torch_nor_webdataset():
    code = "import sys\nimport emocap_shards.stream"
    check = "\nprint([name for name in ('torch', 'webdataset') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
