"""Tests which errors all ranks raise if one rank fails, and that ranks of different speed call the same collectives."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from emocap_shards.errors import StoreError
from gloo_ranks import on_gloo
from pretrain_fakes import FakeRuntime, ThreadRanks, changed, on_ranks

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError, ConfigError, LostContact, Superseded
from emocap_pretrain.ranks.group import RankGroup, recorded_collectives
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.loop import pretrain


def failing_on(rank: int, error: Exception) -> Callable[[ThreadRanks], Any]:
    def act(group: ThreadRanks) -> Any:
        def one() -> int:
            if group.rank == rank:
                raise error
            return group.rank

        return group.run_on_all(one)

    return act


def test_values_of_all_ranks_arrive_in_their_order() -> None:
    assert on_ranks(3, lambda group: group.run_on_all(lambda: group.rank)) == [[0, 1, 2]] * 3
    assert on_ranks(3, lambda group: group.run_on_main(lambda: f"from {group.rank}")) == ["from 0"] * 3


def test_numbers_of_all_ranks_arrive_in_their_order() -> None:
    assert RankGroup(Rank(), "cpu", None).gather_numbers([1.0, 2.5]) == [[1.0, 2.5]]
    table = on_gloo(2, gather_rank_and_tenth)
    assert table == [[[0.0, 0.1], [1.0, 0.1]]] * 2


def gather_rank_and_tenth(group: RankGroup) -> list[list[float]]:
    return group.gather_numbers([float(group.rank), 0.1])


def test_a_rank_alone_calls_and_raises_as_it_is() -> None:
    alone = RankGroup(Rank(), "cpu", None)
    assert (alone.run_on_main(lambda: 3), alone.run_on_all(lambda: 3)) == (3, [3])
    with pytest.raises(StoreError, match="gone"):
        alone.run_on_main(lambda: (_ for _ in ()).throw(StoreError("gone")))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all_and_named(rank: int) -> None:
    outcomes = on_ranks(2, failing_on(rank, StoreError("gone")))
    assert isinstance(outcomes[rank], StoreError)
    assert isinstance(outcomes[1 - rank], LostContact)
    assert str(outcomes[1 - rank]) == f"rank {rank} failed: gone"


@pytest.mark.parametrize("error", [ConfigError("set steps"), Superseded("another start")])
def test_wrong_input_and_a_run_that_was_taken_over_are_the_same_error_on_all_ranks(error: Exception) -> None:
    outcomes = on_ranks(2, failing_on(1, error))
    assert [type(each) for each in outcomes] == [type(error)] * 2
    assert [str(each) for each in outcomes] == [str(error)] * 2


def test_what_fails_is_said_with_the_rank_where_it_is_given() -> None:
    def act(group: ThreadRanks) -> Any:
        def one() -> None:
            if group.rank == 1:
                raise ValueError("no\npixels")

        return group.run_on_all(one, failing="nothing was saved")

    for outcome in on_ranks(2, act):
        assert isinstance(outcome, CheckpointError)
        assert str(outcome) == "nothing was saved: rank 1: ValueError: no pixels"


class SlowRuntime(FakeRuntime):
    """Lets rank 1 answer late each time when the loop asks whether to stop."""

    def should_stop(self) -> bool:
        if self.rank_info.rank == 1:
            time.sleep(0.03)
        return super().should_stop()


def calls_of(group: RankGroup, config: Config, stop_after: int | None) -> tuple[dict[str, list[str]], str]:
    runtime = SlowRuntime(
        stop_after=stop_after, rank_info=Rank(group.rank, group.world_size, group.rank, group.world_size)
    )
    ended = "done"
    with recorded_collectives() as recording:
        try:
            pretrain(config, runtime)
        except Exception as error:  # noqa: BLE001 - the test compares what the ranks say
            ended = f"{type(error).__name__}: {error}"
    return recording.calls, ended


@pytest.mark.parametrize(
    ("changes", "stop_after", "ended"),
    [
        ({"checkpoint__every_steps": 2, "steps": 5}, None, "done"),
        ({"checkpoint__every_steps": 2, "steps": 9}, 3, "done"),
        ({"optimizer__lr": 1e30, "optimizer__warmup_steps": 0, "health__nonfinite": "rollback"}, None, "RolledBack"),
        ({"optimizer__lr": 1e30, "optimizer__warmup_steps": 0}, None, "TrainingError"),
    ],
    ids=["steps, saves and evaluation", "stop", "roll-back", "failure"],
)
def test_ranks_of_different_speed_call_the_same_collectives(
    tiny_config: Config, changes: dict[str, Any], stop_after: int | None, ended: str
) -> None:
    config = changed(tiny_config, cluster__ranks=2, **changes)
    (fast, fast_ended), (slow, slow_ended) = on_gloo(2, calls_of, config, stop_after)
    assert fast == slow
    assert [each.partition(":")[0] for each in (fast_ended, slow_ended)] == [ended, ended], fast_ended
    assert {"run_on_main", "maximum", "gather_numbers"} <= set(fast["training"])
    if ended == "done":  # A logged step before the first save has one exchange, and nothing beside it.
        assert "gather_numbers gather_numbers" in " ".join(fast["training"])
