"""Tests that a stream resumes anywhere with any number of ranks: every sample of an epoch once, in the same steps."""

import uuid
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from emocap_shards.cache import Cache
from emocap_shards.cursor import Cursor
from emocap_shards.library import MixtureDataset
from emocap_shards.manifest import read_manifest
from emocap_shards.order import Order
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_cases import record, records

WORLDS = st.sampled_from([1, 2, 3, 4, 8])
SAMPLES, OTHERS, STEPS = 37, 11, 13


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Returns two datasets, the first on a disk and the second remote."""
    near, far = str(tmp_path_factory.mktemp("near")), f"memory://{uuid.uuid4().hex}"
    write_shards(records(SAMPLES), near, samples_per_shard=5)
    write_shards((record(number) for number in range(100, 100 + OTHERS)), far, samples_per_shard=3)
    return near, far


@pytest.fixture(scope="module")
def streams(urls, tmp_path_factory):
    near, far = urls
    common = {"seed": 4, "window_samples": 12, "cache": Cache(str(tmp_path_factory.mktemp("cache")), 1 << 20)}
    return {
        "one dataset": Stream(url=near, global_batch=7, **common),
        "from far": Stream(url=far, global_batch=3, **common),
        "a mixture": Stream(url=(MixtureDataset(near, 2), MixtureDataset(far, 1)), global_batch=6, **common),
    }


def of_all_ranks(stream, world, workers, steps):
    """Returns the sample numbers and the cursor of each step over all ranks; a rank uses its workers in turn."""
    ranks = []
    for rank in range(world):
        mine = replace(stream, rank=rank, world_size=world)
        parts = [mine.encoded_steps(part, workers) for part in range(workers)]
        ranks.append([next(parts[turn % workers]) for turn in range(steps)])
    for step in zip(*ranks, strict=True):
        assert len({rank_step.cursor for rank_step in step}) == 1
        yield [sample.index for rank_step in step for sample in rank_step.samples], step[0].cursor


@pytest.mark.parametrize("name", ["one dataset", "from far", "a mixture"])
@settings(max_examples=15)
@given(data=st.data())
def test_any_chain_of_stops_sees_the_unbroken_steps(streams, name, data):
    stream, done = streams[name], []
    whole = list(of_all_ranks(stream, 1, 1, STEPS))
    while len(done) < STEPS:
        count = data.draw(st.integers(1, STEPS - len(done)))
        start = done[-1][1] if done else Cursor()
        done += of_all_ranks(replace(stream, start=start), data.draw(WORLDS), data.draw(st.integers(1, 4)), count)
    assert done == whole


def test_each_source_of_a_mixture_is_passed_exactly_once_in_each_of_its_epochs(streams):
    passed = Counter()
    for rank_step in islice(streams["a mixture"].steps(), 40):
        passed.update((sample.epoch, sample.index) for sample in rank_step.samples)
    assert set(passed.values()) == {1}
    far = [index for epoch, index in passed if index >= SAMPLES and epoch < 6]
    assert Counter(far) == dict.fromkeys(range(SAMPLES, SAMPLES + OTHERS), 6)


def test_every_batch_of_a_mixture_has_its_shares(streams):
    for rank_step in islice(streams["a mixture"].encoded_steps(), 20):
        assert sum(sample.index < SAMPLES for sample in rank_step.samples) == 4
        assert len(rank_step.samples) == 6


def test_weights_default_to_sizes(urls):
    stream = Stream(url=tuple(map(MixtureDataset, urls)), global_batch=SAMPLES + OTHERS)
    rank_step = next(stream.encoded_steps())
    assert abs(sum(sample.index >= SAMPLES for sample in rank_step.samples) - OTHERS) <= 1


def test_resuming_late_evaluates_one_window_and_reads_one_step(streams, monkeypatch):
    windows, honest = [], Order._window
    monkeypatch.setattr(Order, "_window", lambda self, number: windows.append(number) or honest(self, number))
    next(replace(streams["one dataset"], start=Cursor(3, 28), global_batch=1).encoded_steps())
    assert 1 <= len(set(windows)) <= 2


def test_a_rank_reads_neighbours(urls):
    """Within a step samples are in storage order, so the share of each rank is contiguous."""
    stream = Stream(url=urls[0], global_batch=20, window_samples=SAMPLES)
    for rank in range(4):
        rank_step = next(replace(stream, rank=rank, world_size=4).encoded_steps())
        numbers = [sample.index for sample in rank_step.samples]
        assert numbers == sorted(numbers)
        assert numbers[-1] - numbers[0] < SAMPLES / 2


def test_several_captions_take_turns_by_epoch_and_are_the_same_for_every_world(tmp_path):
    def captions(number):
        return [record(other).caption for other in (number, number + 50, number + 80)]

    write_shards((replace(record(number), further=tuple(captions(number)[1:])) for number in range(12)), tmp_path)
    stream = Stream(url=str(tmp_path), global_batch=12)
    shown = [rank_step.samples for rank_step in islice(stream.steps(), 8)]
    for number in range(12):
        views = [sample for samples in shown for sample in samples if sample.index == number]
        assert len({view.caption for view in views}) >= 2
        assert all({view.caption, *view.further} == set(captions(number)) for view in views)
    again = next(replace(stream, rank=1, world_size=2, start=Cursor(5, 0)).steps()).samples
    assert [sample.caption for sample in again] == [sample.caption for sample in shown[5][6:]]


def test_a_cache_that_two_windows_do_not_fit_into_is_left_out_and_said(urls, tmp_path, caplog):
    stream = Stream(url=urls[1], global_batch=3, epochs=1, cache=Cache(str(tmp_path / "cache"), 10_000))
    seen = [sample.index for rank_step in stream.steps() for sample in rank_step.samples]
    assert sorted(seen) == list(range(OTHERS))
    assert "is not used: it holds 1e-05 GB, but the node's part of two shuffle windows has" in caplog.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("local_world_size", "is_used"), [(1, True), (4, False)])
def test_a_cache_must_hold_two_windows_of_all_ranks_of_its_node(urls, tmp_path, local_world_size, is_used):
    two_windows = 2 * read_manifest(urls[1]).total_bytes  # A window holds the whole dataset.
    folder = tmp_path / "cache"
    stream = Stream(
        url=urls[1],
        global_batch=4,
        epochs=1,
        world_size=4,
        local_world_size=local_world_size,
        cache=Cache(str(folder), two_windows // 2),
    )
    assert list(stream.steps())
    assert folder.exists() == is_used
