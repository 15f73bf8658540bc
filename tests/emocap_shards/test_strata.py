import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.library import MixtureDataset
from emocap_shards.mixture import MixturePlan
from emocap_shards.order import ShardLayout
from emocap_shards.strata import ClassBalance, class_shares, strata_of
from emocap_shards.stream import RankStep, Stream
from emocap_shards.writer import write_shards
from hypothesis import given
from hypothesis import strategies as st
from shard_cases import records

SHARDS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)
SAMPLES = 30
CLASSES = np.array([0] * 20 + [1] * 7 + [2] * 3, dtype=np.uint8)[np.random.default_rng(0).permutation(SAMPLES)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("balanced") / "packed"
    write_shards(records(SAMPLES), folder, samples_per_shard=4)
    return str(folder)


@pytest.fixture
def stream(dataset: str) -> Stream:
    return Stream(url=dataset, global_batch=9, seed=5, window_samples=12, balance=ClassBalance((CLASSES,), 1.0))


def taken(stream: Stream, count: int, **changes) -> list[RankStep]:
    return list(itertools.islice(dataclasses.replace(stream, **changes).encoded_steps(), count))


def indexes(steps: list[RankStep]) -> list[list[int]]:
    return [[sample.index for sample in step.samples] for step in steps]


@given(SHARDS, st.integers(0, 2**31 - 1), st.integers(0, 5), st.integers(1, 20), st.booleans())
def test_a_pass_over_a_class_has_each_of_its_samples_once(shards, seed, epoch, window, shuffle):
    classes = np.array(list(itertools.chain.from_iterable(shards)), dtype=np.uint8)
    strata = strata_of([ShardLayout([len(each) for each in shards])], ClassBalance((classes,), 0.5))
    assert [each.number - 1 for each in strata] == sorted(set(classes.tolist()))
    assert sum(each.share for each in strata) == pytest.approx(1)
    for each in strata:
        order = each.order(seed, epoch, window, shuffle=shuffle)
        ids = each.ids(order, 0, each.samples)
        assert sorted(ids.tolist()) == np.flatnonzero(classes == each.number - 1).tolist()
        half = each.samples // 2
        parts = [each.ids(order, 0, half), each.ids(order, half, each.samples)]
        assert np.array_equal(np.concatenate(parts), ids)


def test_classes_of_equal_size_have_different_orders():
    # Otherwise the same pairs of samples would be in one batch in every epoch.
    classes = np.array([0, 1] * 40, dtype=np.uint8)
    first, second = strata_of([ShardLayout([80])], ClassBalance((classes,)))
    orders = [each.order(7, 0, 80, shuffle=True).ids(0, 40).tolist() for each in (first, second)]
    assert orders[0] != orders[1]
    assert first.window_samples(80) == 40, "a window lasts as many steps as one of the whole dataset"


@given(st.lists(st.integers(1, 500), min_size=2, max_size=12), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 5000))
def test_at_every_position_a_class_has_had_its_share_but_for_one_sample(counts, exponent, position):
    classes = np.repeat(np.arange(len(counts)), counts).astype(np.uint8)
    strata = strata_of([ShardLayout([len(classes)])], ClassBalance((classes,), exponent))
    plan = MixturePlan(tuple(each.samples for each in strata), tuple(each.share for each in strata), 1)
    wanted = np.array(counts) ** (1 - exponent)
    wanted = wanted / wanted.sum() * position
    # Shares are multiples of 1 / 4,096, so the difference grows slowly with the position.
    assert np.abs(np.array(plan.given(position)) - wanted).max() <= 1 + position * 2 / 4096


def test_the_inverse_frequency_gives_equal_shares_and_its_root_those_of_the_roots():
    assert class_shares([100, 25, 1], 1.0).tolist() == pytest.approx([1 / 3] * 3)
    assert class_shares([100, 25, 1], 0.5).tolist() == pytest.approx([10 / 16, 5 / 16, 1 / 16])
    assert class_shares([100, 25, 1], 0.0).tolist() == pytest.approx([100 / 126, 25 / 126, 1 / 126])


def test_every_step_has_the_classes_in_their_shares(stream):
    steps = taken(stream, 20)
    for found in indexes(steps):
        assert len(found) == 9
        assert all(2 <= count <= 4 for count in Counter(CLASSES[found].tolist()).values())
    drawn = Counter(CLASSES[list(itertools.chain.from_iterable(indexes(steps)))].tolist())
    assert all(59 <= count <= 61 for count in drawn.values())


def test_samples_of_a_class_are_all_used_before_one_is_used_again(stream):
    drawn = [index for step in taken(stream, 30) for index in sorted(sample.index for sample in step.samples)]
    counts = Counter(drawn)
    for each in range(3):
        times = [counts[index] for index in np.flatnonzero(each == CLASSES)]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 10])
def test_ranks_divide_the_same_steps(stream, world_size):
    whole = taken(stream, 12)
    ranks = [taken(stream, 12, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, *shares in zip(whole, *ranks, strict=True):
        assert [sample.index for share in shares for sample in share.samples] == [each.index for each in step.samples]
        assert {share.cursor for share in shares} == {step.cursor}


def test_a_stream_resumes_at_every_step_on_any_number_of_ranks(stream):
    whole = taken(stream, 10)
    for done, step in enumerate(whole[:-1], 1):
        rest = [
            taken(stream, 10 - done, start=step.cursor, rank=rank, world_size=done % 3 + 1)
            for rank in range(done % 3 + 1)
        ]
        joined = [list(itertools.chain.from_iterable(each)) for each in zip(*map(indexes, rest), strict=True)]
        assert joined == indexes(whole[done:])


def test_loader_processes_divide_the_steps(stream):
    whole = indexes(taken(stream, 6))
    for part in range(2):
        assert indexes(list(itertools.islice(stream.encoded_steps(part, 2), 3))) == whole[part::2]


def test_a_repeated_sample_has_another_epoch(stream):
    steps = list(itertools.islice(stream.steps(), 20))
    seen = [(sample.index, sample.epoch) for step in steps for sample in step.samples]
    assert len(set(seen)) == len(seen)
    assert len({index for index, _ in seen}) < len(seen)


def test_an_epoch_has_as_many_samples_as_the_dataset(stream):
    cursors = [step.cursor for step in taken(stream, 4)]
    assert cursors == [Cursor(0, 9), Cursor(0, 18), Cursor(0, 27), Cursor(1, 6)]


def test_another_seed_and_another_epoch_give_another_order(stream):
    assert indexes(taken(stream, 5)) != indexes(taken(stream, 5, seed=6))
    assert indexes(taken(stream, 4)) != indexes(taken(stream, 4, start=Cursor(1, 0)))


def test_each_dataset_of_a_mixture_keeps_its_share_and_one_may_stay_as_it_is(dataset):
    mix = (MixtureDataset(dataset, 3.0), MixtureDataset(dataset, 1.0))
    stream = Stream(url=mix, global_batch=16, seed=1, balance=ClassBalance((CLASSES, None), 1.0))
    for found in indexes(taken(stream, 20)):
        first = [index for index in found if index < SAMPLES]
        assert 11 <= len(first) <= 13
        assert all(3 <= count <= 5 for count in Counter(CLASSES[first].tolist()).values())
    drawn = Counter(itertools.chain.from_iterable(indexes(taken(stream, 20))))
    second = [drawn[index] for index in range(SAMPLES, 2 * SAMPLES)]
    assert max(second) - min(second) <= 1


def test_classes_of_another_dataset_are_refused(stream):
    with pytest.raises(PlanError, match="another dataset"):
        taken(stream, 1, balance=ClassBalance((CLASSES[:-1],), 1.0))
    with pytest.raises(PlanError, match=r"exponent=2"):
        ClassBalance((CLASSES,), 2.0)
