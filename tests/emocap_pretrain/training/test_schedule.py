import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.training.optimizer import learning_rate

SETTINGS = OptimizerConfig(lr=0.1, warmup_steps=10, final_share=0.2)


def test_the_warm_up_rises_in_equal_steps_to_the_full_rate():
    rates = [learning_rate(SETTINGS, step, 100) for step in range(11)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.1)


def test_the_last_step_has_the_final_share_and_the_middle_of_the_decay_the_mean():
    assert learning_rate(SETTINGS, 110, 111) == pytest.approx(0.02)
    assert learning_rate(SETTINGS, 60, 111) == pytest.approx((0.1 + 0.02) / 2)
    assert learning_rate(SETTINGS, 35, 111) == pytest.approx(0.02 + 0.08 * (1 + math.cos(math.pi / 4)) / 2)


def test_a_step_beyond_the_end_stays_at_the_final_share():
    assert learning_rate(SETTINGS, 500, 111) == pytest.approx(0.02)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate(OptimizerConfig(lr=0.1, warmup_steps=0), 0, 100) == pytest.approx(0.1)


@given(st.integers(0, 30), st.integers(1, 60), st.floats(0, 1))
def test_the_rate_rises_then_falls_and_stays_within_its_bounds(warmup, steps, final_share):
    settings = OptimizerConfig(lr=0.1, warmup_steps=warmup, final_share=final_share)
    rates = [learning_rate(settings, step, steps) for step in range(steps)]
    assert all(0 <= rate <= 0.1 * (1 + 1e-12) for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
