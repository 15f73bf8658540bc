import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.health.position import MAX_TICK_S, TrainingPosition, UnchangedTimer


@given(ticks=st.lists(st.floats(0, 1e5), max_size=40))
def test_a_timer_counts_the_time_between_two_calls_up_to_the_longest_tick(ticks: list[float]) -> None:
    timer, now_s = UnchangedTimer(), 0.0
    timer.update(now_s, "same")
    for tick_s in ticks:
        now_s += tick_s
        timer.update(now_s, "same")
    assert timer.seconds == pytest.approx(sum(min(tick_s, MAX_TICK_S) for tick_s in ticks), abs=1e-3)
    assert timer.update(now_s, "another") == 0


def test_the_first_step_of_an_attempt_is_not_bounded_and_the_second_is() -> None:
    position = TrainingPosition()
    assert not position.bounded
    position.enter("training", 10)
    position.enter_section("data")
    assert position.bounded, "loader processes that never deliver a batch are found in the first step too"
    position.enter_section("forward")
    assert not position.bounded
    position.enter("training", 11)
    assert position.bounded
    for phase in ("saving", "evaluating"):
        position.enter(phase, 11)
        assert not position.bounded
