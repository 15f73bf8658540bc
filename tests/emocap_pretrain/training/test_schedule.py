"""Tests the learning rate of each step, for all schedules."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretrain_fakes import changed
from pydantic import ValidationError

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.training.other_steps import note_on_other_steps
from emocap_pretrain.training.schedule import first_decayed_step, learning_rate, note_on_warmup

SETTINGS = OptimizerConfig(lr=0.1, warmup_steps=10, final_share=0.2)
WSD = OptimizerConfig(lr=0.1, warmup_steps=10, final_share=0.2, schedule="wsd", decay_steps=40)


def rates_of(settings: OptimizerConfig, steps: int) -> list[float]:
    return [learning_rate(settings, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_warm_up_rises_in_equal_steps_to_the_full_rate(schedule: str):
    rates = rates_of(SETTINGS.model_copy(update={"schedule": schedule}), 100)
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.1)


def test_the_last_step_has_the_final_share_and_the_middle_of_the_decay_the_mean():
    assert learning_rate(SETTINGS, 110, 111) == pytest.approx(0.02)
    assert learning_rate(SETTINGS, 60, 111) == pytest.approx((0.1 + 0.02) / 2)
    assert learning_rate(SETTINGS, 35, 111) == pytest.approx(0.02 + 0.08 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_stays_at_the_full_rate_and_falls_linearly_in_its_last_steps():
    rates = rates_of(WSD, 100)
    assert rates[10:60] == pytest.approx([0.1] * 50)
    assert rates[60:] == pytest.approx([0.1 - 0.08 * (step + 1) / 40 for step in range(40)])


def test_the_shape_sqrt_falls_at_once_and_then_slowly():
    rates = rates_of(WSD.model_copy(update={"decay_shape": "sqrt"}), 100)
    assert rates[59] == pytest.approx(0.1)
    assert rates[69] == pytest.approx(0.02 + 0.08 * (1 - math.sqrt(10 / 40)))
    assert rates[99] == pytest.approx(0.02)


def test_the_decay_of_wsd_takes_a_fifth_of_all_steps_by_default():
    settings = OptimizerConfig(schedule="wsd", warmup_steps=10)
    assert first_decayed_step(settings, 100) == 80
    assert first_decayed_step(settings, 11) == 10  # The warm-up comes first, and the decay is shorter.
    assert learning_rate(settings, 10, 11) == 0


def test_a_constant_rate_does_not_fall():
    settings = OptimizerConfig(lr=0.1, warmup_steps=2, schedule="constant")
    assert rates_of(settings, 5) == [0.05, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("settings", [SETTINGS, WSD])
def test_a_step_beyond_the_end_stays_at_the_final_share(settings: OptimizerConfig):
    assert learning_rate(settings, 500, 111) == pytest.approx(0.02)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate(OptimizerConfig(lr=0.1, warmup_steps=0), 0, 100) == pytest.approx(0.1)


any_settings = st.builds(
    lambda schedule, warmup, final, decay, shape: OptimizerConfig(
        lr=0.1,
        warmup_steps=warmup,
        schedule=schedule,
        **({} if schedule == "constant" else {"final_share": final}),
        **({"decay_steps": decay, "decay_shape": shape} if schedule == "wsd" else {}),
    ),
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.integers(0, 30),
    st.floats(0, 1),
    st.none() | st.integers(1, 40),
    st.sampled_from(["linear", "sqrt"]),
)


@given(any_settings, st.integers(1, 60))
def test_the_rate_rises_then_falls_and_stays_within_its_bounds(settings: OptimizerConfig, steps: int):
    rates = rates_of(settings, steps)
    assert all(0 <= rate <= 0.1 * (1 + 1e-12) for rate in rates)
    rising, falling = rates[: settings.warmup_steps], rates[settings.warmup_steps :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling and settings.schedule == "wsd":
        assert falling[-1] == pytest.approx(0.1 * settings.final_share)


@given(any_settings.filter(lambda settings: settings.schedule != "cosine"), st.integers(1, 60), st.integers(0, 60))
def test_more_steps_change_no_rate_before_the_decay(settings: OptimizerConfig, steps: int, further: int):
    same = steps if settings.schedule == "constant" else first_decayed_step(settings, steps)
    shorter, longer = rates_of(settings, steps), rates_of(settings, steps + further)
    assert shorter[:same] == longer[: len(shorter[:same])]


@pytest.mark.parametrize(
    ("given", "owners"),
    [
        ({"schedule": "constant", "final_share": 0.1}, "final_share belongs to schedule=cosine and wsd"),
        ({"schedule": "cosine", "decay_steps": 3}, "decay_steps belongs to schedule=wsd, and schedule is cosine"),
        ({"schedule": "constant", "decay_shape": "sqrt"}, "decay_shape belongs to schedule=wsd"),
    ],
)
def test_a_setting_of_another_schedule_is_refused(given: dict[str, Any], owners: str):
    with pytest.raises(ValidationError, match=owners):
        OptimizerConfig(**given)


def test_a_decay_that_does_not_fit_after_the_warm_up_is_refused(tiny_config: Config):
    settings = {"schedule": "wsd", "warmup_steps": 3, "decay_steps": 4}
    assert changed(tiny_config, steps=7, optimizer=settings).optimizer.decay_steps == 4
    with pytest.raises(ValidationError, match=r"warmup_steps=3 and optimizer\.decay_steps=4 are more than steps=6"):
        changed(tiny_config, steps=6, optimizer=settings)


def saved_at(step: int, steps: int) -> Checkpoint:
    return Checkpoint(step=step, attempt="00001-x", files=(), state={"config": {"steps": steps}})


def test_other_steps_are_noted_as_the_schedule_makes_them():
    assert note_on_other_steps(WSD, 200, saved_at(50, 100)) == (
        "steps was 100 until step 50 and is 200 now: the learning rate of step 51 stays 0.1, and falls to 0.02 at the "
        "new end."
    )
    assert "is 0.1 instead of 0.058" in str(note_on_other_steps(WSD, 200, saved_at(80, 100)))
    assert "had ended its decay at 0.02 in step 100; it returns to 0.1" in str(
        note_on_other_steps(WSD, 200, saved_at(100, 100))
    )
    constant = OptimizerConfig(schedule="constant")
    assert note_on_other_steps(constant, 200, saved_at(50, 100)) is None
    assert "no step left" in str(note_on_other_steps(constant, 50, saved_at(50, 100)))


def test_a_run_that_ends_within_its_warmup_is_told_the_rate_that_it_reaches():
    settings = OptimizerConfig(lr=1e-3, warmup_steps=500)
    note = note_on_warmup(settings, 200)
    assert note is not None
    assert "to 0.0004 of 0.001; set it to 20 or so" in note
    assert [note_on_warmup(settings, steps) for steps in (0, 500, 1000)] == [None] * 3
