import emocap_shards.order as module
import numpy as np
import pytest
from emocap_shards.cursor import Cursor
from emocap_shards.errors import PlanError
from emocap_shards.order import Order, ShardLayout, permutation
from emocap_shards.plan import EpochPlan, rank_slice, steps_per_epoch
from hypothesis import given
from hypothesis import strategies as st

PINNED = [2, 1, 6, 4, 0, 5, 3, 8, 7, 11, 9, 10]

counts = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple)
seeds = st.integers(0, 2**40)


def order_of(counts, seed, epoch, window_samples, **options):
    return Order(ShardLayout(counts), seed, epoch, window_samples, **options)


@given(counts, seeds, st.integers(0, 5), st.integers(1, 30))
def test_an_epoch_holds_every_sample_once(counts, seed, epoch, window_samples):
    ids = order_of(counts, seed, epoch, window_samples).ids(0, sum(counts))
    assert sorted(ids.tolist()) == list(range(sum(counts)))


@given(counts, seeds, st.integers(1, 30), st.data())
def test_any_stretch_is_the_same_stretch_of_the_whole_order(counts, seed, window_samples, data):
    order = order_of(counts, seed, 1, window_samples)
    whole = order.ids(0, sum(counts))
    start = data.draw(st.integers(0, sum(counts)))
    stop = data.draw(st.integers(start, sum(counts)))
    assert order.ids(start, stop).tolist() == whole[start:stop].tolist()


def test_equal_positions_beyond_the_small_integers_of_python_give_no_samples():
    order = order_of((1000,), 0, 0, 100)
    assert order.ids(int("900"), int("900")).tolist() == []


@given(counts, seeds, st.integers(1, 30))
def test_a_window_holds_whole_shards_that_begin_within_its_samples(counts, seed, window_samples):
    order, layout = order_of(counts, seed, 0, window_samples), ShardLayout(counts)
    seen, windows = 0, []
    while seen < sum(counts):
        windows.append(order.window(len(windows)))
        shards, samples = np.unique(layout.shard_of(windows[-1]), return_counts=True)
        assert samples.tolist() == [counts[shard] for shard in shards]
        assert len(windows[-1]) - window_samples < max(samples)
        seen += len(windows[-1])
    assert np.concatenate(windows).tolist() == order.ids(0, sum(counts)).tolist()


def test_seeds_and_epochs_have_different_orders():
    orders = {tuple(order_of((50, 50), seed, epoch, 1).ids(0, 100)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_is_pinned_so_that_no_upgrade_changes_a_resumed_run():
    ids = order_of((4, 3, 5), seed=7, epoch=2, window_samples=7).ids(0, 12)
    assert ids.tolist() == PINNED


def test_without_shuffling_the_order_is_that_of_the_manifest():
    assert order_of((4, 3), 0, 0, 1, shuffle=False).ids(2, 6).tolist() == [2, 3, 4, 5]


def test_only_the_windows_that_are_touched_are_evaluated(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "permutation", lambda *key: asked.append(key) or permutation(*key))
    order = order_of((10,) * 1000, 1, 0, 40)
    order.ids(5000, 5035)
    assert asked == [(1, 0, 0, 1000), (1, 0, 126, 40)]  # the shards, and window 125 at positions [5000, 5040)
    order.ids(5035, 5050)
    assert asked[2:] == [(1, 0, 127, 40)]
    order.ids(5080, 5085)
    order.ids(5000, 5005)
    assert asked[3:] == [(1, 0, 128, 40), (1, 0, 126, 40)]  # only the last two windows are kept


def test_positions_outside_the_epoch_are_refused():
    with pytest.raises(PlanError, match=r"\[5, 8\) do not lie within an epoch of 7"):
        order_of((4, 3), 0, 0, 1).ids(5, 8)
    for shuffle in (True, False):
        with pytest.raises(PlanError, match=r"\[-1, 2\) do not lie within an epoch of 7"):
            order_of((4, 3), 0, 0, 1, shuffle=shuffle).ids(-1, 2)


@pytest.mark.parametrize(("window_samples", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_an_empty_window_and_a_negative_seed_are_refused_when_the_order_is_made(window_samples, seed):
    with pytest.raises(PlanError, match=f"window_samples={window_samples}, seed={seed}: a window holds at least 1"):
        order_of((4, 3), seed, 0, window_samples)


@given(st.integers(0, 50), st.integers(1, 12))
def test_ranks_share_the_rows_evenly_and_in_order(rows, world):
    shares = [list(range(rows))[rank_slice(rows, rank, world)] for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(PlanError, match="rank=4 of world_size=4"):
        rank_slice(8, 4, 4)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 45))
def test_steps_tile_the_epoch_and_drop_exactly_the_remainder(samples, global_batch, drop_last, position):
    if position > samples or (drop_last and samples < global_batch):
        return
    plan = EpochPlan(samples, global_batch, drop_last=drop_last, epochs=4)
    steps = list(plan.steps(Cursor(3, position)))
    seen = [at for step in steps for part in step.ranges for at in range(part.start, part.stop)]
    end = position + (samples - position) // global_batch * global_batch if drop_last else samples
    assert seen == list(range(position, end))
    assert all(step.rows == global_batch for step in steps[:-1])
    assert not steps or steps[-1].after == Cursor(4, 0)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_the_steps_of_an_epoch_are_as_many_as_announced(samples, global_batch, drop_last):
    announced = steps_per_epoch(samples, global_batch, drop_last=drop_last)
    if announced:
        assert len(list(EpochPlan(samples, global_batch, drop_last, 1).steps(Cursor()))) == announced


def test_a_plan_without_any_step_is_refused_rather_than_endless():
    with pytest.raises(PlanError, match="5 samples do not fill a step of global_batch=8"):
        next(EpochPlan(5, 8, drop_last=True).steps(Cursor()))


def test_a_cursor_of_a_larger_dataset_is_refused():
    with pytest.raises(PlanError, match="another dataset"):
        next(EpochPlan(10, 2).steps(Cursor(0, 11)))


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_cursor_survives_json(epoch, position):
    assert Cursor.from_json(Cursor(epoch, position).to_json()) == Cursor(epoch, position)


@pytest.mark.parametrize("value", [{}, {"epoch": 1}, {"epoch": "1", "position": 2}, {"epoch": -1, "position": 0}])
def test_what_is_no_cursor_is_refused(value):
    with pytest.raises(PlanError):
        Cursor.from_json(value)
