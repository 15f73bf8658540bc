import numpy as np
import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.plan import Order, permutation, rank_slice, steps_from, steps_per_epoch
from hypothesis import given
from hypothesis import strategies as st

counts = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple)
seeds = st.integers(0, 2**40)


@given(counts, seeds, st.integers(0, 5), st.integers(1, 5))
def test_an_epoch_holds_every_sample_once(counts, seed, epoch, window_shards):
    ids = Order(counts, seed, epoch, window_shards).ids(0, sum(counts))
    assert sorted(ids.tolist()) == list(range(sum(counts)))


@given(counts, seeds, st.integers(1, 5), st.data())
def test_any_stretch_is_the_same_stretch_of_the_whole_order(counts, seed, window_shards, data):
    order = Order(counts, seed, 1, window_shards)
    whole = order.ids(0, sum(counts))
    start = data.draw(st.integers(0, sum(counts)))
    stop = data.draw(st.integers(start, sum(counts)))
    assert order.ids(start, stop).tolist() == whole[start:stop].tolist()


@given(counts, seeds, st.integers(1, 5))
def test_a_window_holds_whole_shards_and_no_more_of_them_than_it_says(counts, seed, window_shards):
    order = Order(counts, seed, 0, window_shards)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    for number in range(-(-len(counts) // window_shards)):
        shards, samples = np.unique(np.searchsorted(firsts, order.window(number), side="right") - 1, return_counts=True)
        assert len(shards) <= window_shards
        assert samples.tolist() == [counts[shard] for shard in shards]


def test_seeds_and_epochs_have_different_orders():
    orders = {tuple(Order((50, 50), seed, epoch, 1).ids(0, 100)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_is_pinned_so_that_no_upgrade_changes_a_resumed_run():
    ids = Order((4, 3, 5), seed=7, epoch=2, window_shards=2).ids(0, 12)
    assert ids.tolist() == [
        2,
        1,
        6,
        4,
        0,
        5,
        3,
        8,
        7,
        11,
        9,
        10,
    ]


def test_without_shuffling_the_order_is_that_of_the_manifest():
    assert Order((4, 3), 0, 0, 1, shuffle=False).ids(2, 6).tolist() == [2, 3, 4, 5]


def test_only_the_windows_that_are_touched_are_evaluated():
    order = Order((10,) * 1000, seed=1, epoch=0, window_shards=4)
    permutation.cache_clear()
    order.ids(5000, 5035)
    assert permutation.cache_info().misses == 1 + 1  # the shards, and window 125 at positions [5000, 5040)
    order.ids(5035, 5050)
    assert permutation.cache_info().misses == 1 + 2


def test_positions_outside_the_epoch_are_refused():
    with pytest.raises(PlanError, match=r"\[5, 8\) do not lie within an epoch of 7"):
        Order((4, 3), 0, 0, 1).ids(5, 8)


@given(st.integers(0, 50), st.integers(1, 12))
def test_ranks_share_the_rows_evenly_and_in_order(rows, world):
    shares = [list(range(rows))[rank_slice(rows, rank, world)] for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(PlanError, match="rank=4 of world=4"):
        rank_slice(8, 4, 4)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 45))
def test_steps_tile_the_epoch_and_drop_exactly_the_remainder(samples, global_batch, drop_last, position):
    if position > samples or (drop_last and samples < global_batch):
        return
    steps = list(
        steps_from(Cursor(3, position), samples=samples, global_batch=global_batch, drop_last=drop_last, epochs=4)
    )
    seen = [at for step in steps for at in range(step.start, step.stop)]
    end = position + (samples - position) // global_batch * global_batch if drop_last else samples
    assert seen == list(range(position, end))
    assert all(step.stop - step.start == global_batch for step in steps[:-1])
    assert not steps or steps[-1].after == Cursor(4, 0)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_the_steps_of_an_epoch_are_as_many_as_announced(samples, global_batch, drop_last):
    announced = steps_per_epoch(samples, global_batch, drop_last=drop_last)
    if announced:
        steps = steps_from(Cursor(), samples=samples, global_batch=global_batch, drop_last=drop_last, epochs=1)
        assert len(list(steps)) == announced


def test_a_plan_without_any_step_is_refused_rather_than_endless():
    with pytest.raises(PlanError, match="5 samples make no step of global_batch=8"):
        next(steps_from(Cursor(), samples=5, global_batch=8, drop_last=True))


def test_a_cursor_of_a_larger_dataset_is_refused():
    with pytest.raises(PlanError, match="another dataset"):
        next(steps_from(Cursor(0, 11), samples=10, global_batch=2, drop_last=False))


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_cursor_survives_json(epoch, position):
    assert Cursor.from_json(Cursor(epoch, position).to_json()) == Cursor(epoch, position)


@pytest.mark.parametrize("value", [{}, {"epoch": 1}, {"epoch": "1", "position": 2}, {"epoch": -1, "position": 0}])
def test_what_is_no_cursor_is_refused(value):
    with pytest.raises(PlanError):
        Cursor.from_json(value)
