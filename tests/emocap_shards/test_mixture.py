from itertools import islice

import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.mixture import ROUND, MixturePlan, apportioned
from hypothesis import given
from hypothesis import strategies as st

sizes = st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple)
weights = st.floats(0.01, 100)


@st.composite
def mixtures(draw):
    samples = draw(sizes)
    shares = draw(st.lists(weights, min_size=len(samples), max_size=len(samples)).map(tuple))
    return MixturePlan(samples, shares, draw(st.integers(1, 50)))


@given(mixtures(), st.integers(0, 10**9))
def test_every_prefix_is_shared_by_weight(mixture, position):
    given_each = mixture.given(position)
    assert sum(given_each) == position
    for count, part in zip(given_each, apportioned(mixture.weights, ROUND), strict=True):
        assert abs(count - position * part / ROUND) < 1


@given(mixtures(), st.integers(0, 3 * ROUND))
def test_each_position_is_given_by_one_dataset(mixture, position):
    before, after = mixture.given(position), mixture.given(position + 1)
    assert sorted(late - early for early, late in zip(before, after, strict=True))[-2:] == [0, 1]


@given(mixtures(), st.integers(0, 500))
def test_each_dataset_goes_through_its_own_epochs_without_a_gap(mixture, start):
    cursor = Cursor(*divmod(start, sum(mixture.samples)))
    told = [[] for _ in mixture.samples]
    for step in islice(mixture.steps(cursor), 6):
        assert step.rows == mixture.global_batch
        for stretch in step.ranges:
            size = mixture.samples[stretch.dataset]
            told[stretch.dataset] += [stretch.epoch * size + at for at in range(stretch.start, stretch.stop)]
    for dataset, first in enumerate(mixture.given(start)):
        assert told[dataset] == list(range(first, first + len(told[dataset])))


@given(mixtures(), st.integers(1, 6))
def test_resuming_at_any_step_gives_the_same_steps(mixture, done):
    whole = list(islice(mixture.steps(Cursor()), 8))
    assert list(islice(mixture.steps(whole[done - 1].after), 8 - done)) == whole[done:]


def test_epochs_end_it_exactly():
    steps = list(MixturePlan((6, 4), (1, 1), 4, epochs=2).steps(Cursor()))
    assert sum(step.rows for step in steps) == 20
    assert steps[-1].after == Cursor(2, 0)


@given(st.lists(weights, min_size=1, max_size=9), st.integers(10, 5000))
def test_seats_add_up_and_everyone_has_one(shares, seats):
    parts = apportioned(shares, seats)
    assert sum(parts) == seats
    assert min(parts) >= 1
    assert all(
        abs(part - share / sum(shares) * seats) < len(shares) + 1 for part, share in zip(parts, shares, strict=True)
    )


def test_every_batch_of_many_datasets_has_its_shares_to_within_two_samples():
    mixture = MixturePlan((50,) * 10, (100, 2, 2, 1, 2, 1, 3.4, 6, 9, 10), 256)
    parts = apportioned(mixture.weights, ROUND)
    for start in range(0, 3 * ROUND, 97):
        pairs = zip(mixture.given(start), mixture.given(start + 256), parts, strict=True)
        assert all(abs(after - before - 256 * part / ROUND) < 2 for before, after, part in pairs)


def test_equal_weights_take_turns():
    assert [MixturePlan((5, 5), (2, 2), 1).given(position) for position in range(5)] == [
        [0, 0],
        [1, 0],
        [1, 1],
        [2, 1],
        [2, 2],
    ]


@pytest.mark.parametrize("shares", [(1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0,)])
def test_weights_that_are_none_are_refused(shares):
    with pytest.raises(PlanError):
        MixturePlan((3, 4), shares, 2)


def test_a_cursor_after_the_epoch_is_refused():
    with pytest.raises(PlanError, match="another dataset"):
        next(MixturePlan((3, 4), (1, 1), 2).steps(Cursor(0, 8)))
