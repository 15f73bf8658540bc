import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.store import open_store
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.config.schema import HealthConfig
from emocap_pretrain.errors import ConfigError, TrainingError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.guard import FEWEST, SKIPPED_FILE, Guard, Verdict

ALONE = RankGroup(Rank(), "cpu", None)


def falling(steps: int) -> list[float]:
    """Returns the losses of a run without problems."""
    dice = random.Random(1)
    return [3 * math.exp(-step / 200) + 1 + dice.gauss(0, 0.05) for step in range(steps)]


def actions(guard: Guard, losses: list[float], first: int = 1) -> list[str]:
    return [guard.judge(step, loss).action for step, loss in enumerate(losses, first)]


def test_all_updates_of_a_run_without_problems_are_applied() -> None:
    assert set(actions(Guard(HealthConfig(spike=6, on_spike="rollback")), falling(2000))) == {"apply"}


class OnDevice:
    """A loss that records whether its value was read."""

    def __init__(self) -> None:
        self.read = False

    def __float__(self) -> float:
        self.read = True
        return 1.0


@pytest.mark.parametrize(
    ("settings", "to_skip", "read"),
    [
        ({}, {}, False),
        ({"on_spike": "skip"}, {}, False),
        ({"spike": 8}, {}, True),
        ({"nonfinite": "skip"}, {}, True),
        ({}, {7: "spike"}, True),
    ],
)
def test_the_loss_is_read_from_the_device_only_if_a_setting_needs_it(
    settings: dict[str, Any], to_skip: dict[int, str], read: bool
) -> None:
    loss = OnDevice()
    assert Guard(HealthConfig(**settings), to_skip).judge(1, loss) == Verdict()  # type: ignore[arg-type]
    assert loss.read is read


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("action", ["stop", "skip", "rollback"])
def test_a_loss_that_is_not_finite_has_the_configured_effect(loss: float, action: str) -> None:
    verdict = Guard(HealthConfig(nonfinite=action, spike=8)).judge(12, loss)  # type: ignore[arg-type]
    assert verdict.action == action
    assert f"loss={loss} at step 12" in verdict.reason


@pytest.mark.parametrize(("asked", "action"), [("log", "apply"), ("skip", "skip"), ("rollback", "rollback")])
def test_a_spike_has_the_configured_effect(asked: str, action: str) -> None:
    guard = Guard(HealthConfig(spike=8, on_spike=asked))  # type: ignore[arg-type]
    assert set(actions(guard, falling(100))) == {"apply"}
    verdict = guard.judge(101, 9.0)
    assert verdict.action == action
    assert "loss=9 at step 101 is a spike: the median of the last 64 is" in verdict.reason


def test_the_first_losses_are_never_spikes() -> None:
    guard = Guard(HealthConfig(spike=2, on_spike="skip"))
    assert actions(guard, [1.0, 1000.0] * (FEWEST // 2)) == ["apply"] * FEWEST


def test_a_small_rise_on_a_flat_curve_is_not_a_spike() -> None:
    guard = Guard(HealthConfig(spike=5, on_spike="skip"))
    assert set(actions(guard, [2.0] * 50 + [2.05])) == {"apply"}


def test_spikes_that_are_left_out_do_not_become_the_norm() -> None:
    guard = Guard(HealthConfig(spike=8, on_spike="skip", max_skips=10))
    actions(guard, falling(100))
    assert actions(guard, [9.0] * 12, first=101) == ["skip"] * 10 + ["stop"] * 2
    assert "health.max_skips=10 is used up" in guard.judge(113, 9.0).reason


def test_no_skip_is_allowed_with_a_budget_of_zero() -> None:
    assert Guard(HealthConfig(nonfinite="skip", max_skips=0)).judge(1, math.nan).action == "stop"


losses = st.lists(st.one_of(st.floats(0.1, 10), st.just(math.nan), st.just(1e6)), min_size=1, max_size=120)


@given(losses=losses, cut=st.integers(0, 120))
def test_a_resumed_guard_judges_as_the_unbroken_one(losses: list[float], cut: int) -> None:
    settings = HealthConfig(nonfinite="skip", spike=6, on_spike="skip", max_skips=5)
    unbroken = Guard(settings)
    whole = actions(unbroken, losses)
    first, second = Guard(settings), Guard(settings)
    begun = actions(first, losses[:cut])
    second.load(json.loads(json.dumps(first.state())))
    assert begun + actions(second, losses[cut:], first=cut + 1) == whole
    assert second.state() == unbroken.state()


def test_after_a_roll_back_the_step_is_left_out_and_counts_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    settings = HealthConfig(spike=8, on_spike="rollback", max_skips=2)
    curve = [*falling(100), 9.0, *falling(130)[101:]]
    guard = Guard.open(settings, store, ALONE)
    saved = Guard(settings)
    actions(saved, curve[:90])
    actions(guard, curve[:100])
    verdict = guard.judge(101, curve[100])
    assert verdict.action == "rollback"
    guard.remember(store, 101, verdict.reason)

    again = Guard.open(settings, store, ALONE)
    again.load(saved.state())
    assert actions(again, curve[90:], first=91) == ["apply"] * 10 + ["skip"] + ["apply"] * 29
    assert len(again.state()["skipped"]) == 1
    assert again.judge(200, 9.0).action == "rollback"


def test_a_replayed_step_is_left_out_even_if_its_loss_is_no_spike_now() -> None:
    assert Guard(HealthConfig(), {5: "was a spike"}).judge(5, 1.0) == Verdict("skip", "was a spike")


def test_several_rollbacks_are_remembered(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for step in (30, 7):
        Guard(HealthConfig()).remember(store, step, f"spike at {step}")
    assert json.loads(store.read(SKIPPED_FILE))["steps"] == {"7": "spike at 7", "30": "spike at 30"}


def test_the_error_for_a_damaged_skipped_json_names_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put(SKIPPED_FILE, b"[1, 2")
    with pytest.raises(ConfigError, match=r"skipped\.json cannot be read \(it is not JSON\): restore it, or delete"):
        Guard.open(HealthConfig(), store, ALONE)


def test_a_gradient_that_is_not_finite_counts_as_a_loss_that_is_not() -> None:
    guard = Guard(HealthConfig(nonfinite="skip", max_skips=1))
    assert guard.update_failed(3) == Verdict("skip", "a gradient at step 3 is not finite")
    second = guard.update_failed(4)
    assert second is not None
    assert second.action == "stop"
    assert [step for step, _ in guard.state()["skipped"]] == [3]


def test_a_gradient_that_is_not_finite_stops_the_run_at_the_next_logged_step() -> None:
    assert Guard(HealthConfig(nonfinite="stop")).update_failed(3) is None


def test_a_run_whose_last_updates_were_all_left_out_fails() -> None:
    guard = Guard(HealthConfig(nonfinite="skip"))
    actions(guard, [1.0, math.nan, 1.0, math.nan, math.nan])
    assert [guard.streak(step) for step in range(6)] == [0, 0, 1, 0, 1, 2]
    guard.require_updates(5)
    actions(guard, [math.nan], first=6)
    with pytest.raises(TrainingError, match=r"last 3 of 6 steps were left out .* has not trained since step 3"):
        guard.require_updates(6)
    short = Guard(HealthConfig(nonfinite="skip"))
    actions(short, [math.nan, math.nan])
    with pytest.raises(TrainingError, match="last 2 of 2 steps"):
        short.require_updates(2)
