from dataclasses import replace

import pytest
from emocap_cluster.restarts import LONGEST_PAUSE_S, AttemptEnd, Cause, End, RestartBudget, Retry, Stop, longest_pause_s
from hypothesis import given
from hypothesis import strategies as st

LOST = Cause("Killed", "its process is gone", rank=1)
BUG = Cause("ValueError", "bad row", rank=1, step=7)
ends = st.builds(
    AttemptEnd,
    how=st.sampled_from(End),
    progress=st.integers(0, 50),
    cause=st.one_of(st.none(), st.sampled_from([LOST, BUG, replace(BUG, step=9), replace(BUG, passing=True)])),
)


def fail(restarts: RestartBudget, cause: Cause = LOST, *, progress: int = 0, luck: float = 0.5):
    return restarts.after(AttemptEnd(End.FAILED, progress, cause), luck)


@pytest.mark.parametrize("how", [End.DONE, End.STOPPED])
def test_a_job_that_is_done_or_was_stopped_is_over(how: End) -> None:
    assert RestartBudget(3).after(AttemptEnd(how, 5), 0.5)[1] == Stop(how)


def test_the_first_restart_is_at_once_and_later_ones_wait_longer_and_longer() -> None:
    assert [longest_pause_s(failures) for failures in range(1, 10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert longest_pause_s(10_000) == LONGEST_PAUSE_S


@given(st.integers(0, 8), st.floats(0, 1, exclude_max=True))
def test_without_a_new_checkpoint_the_budget_is_spent_exactly(budget: int, luck: float) -> None:
    restarts = RestartBudget(budget)
    for failures in range(1, budget + 1):
        restarts, then = fail(restarts, luck=luck)
        assert then == Retry(luck * longest_pause_s(failures))
    assert isinstance(fail(restarts, luck=luck)[1], Stop)


@given(st.integers(1, 5), st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_a_job_that_gets_on_between_its_failures_is_never_given_up(budget: int, steps: list[int]) -> None:
    restarts, progress = RestartBudget(budget), 0
    for more in steps:
        progress += more
        restarts, then = fail(restarts, progress=progress)
        assert then == Retry(0.0)


def test_an_older_newest_checkpoint_is_no_progress() -> None:
    restarts, _ = fail(RestartBudget(1, progress=40), progress=40)
    assert isinstance(fail(restarts, progress=20)[1], Stop)


def test_the_same_failure_at_the_same_step_twice_in_a_row_is_a_bug_and_named() -> None:
    restarts, then = fail(RestartBudget(9), BUG)
    assert then == Retry(0.0)
    _, then = fail(restarts, BUG)
    assert isinstance(then, Stop)
    assert then.reason.startswith("rank 1 failed at step 7: ValueError: bad row (the same failure twice in a row")


@pytest.mark.parametrize(
    "other",
    [replace(BUG, step=8), replace(BUG, kind="KeyError"), replace(BUG, message="worse row"), LOST],
)
def test_another_step_kind_or_message_is_another_failure(other: Cause) -> None:
    restarts, _ = fail(RestartBudget(9), BUG)
    assert isinstance(fail(restarts, other)[1], Retry)


@pytest.mark.parametrize("cause", [LOST, replace(BUG, passing=True), replace(BUG, lost=True)])
def test_what_may_pass_by_itself_is_tried_again_though_it_repeats(cause: Cause) -> None:
    restarts, _ = fail(RestartBudget(9), cause)
    assert isinstance(fail(restarts, cause)[1], Retry)


def test_a_final_failure_is_never_tried_again() -> None:
    _, then = fail(RestartBudget(9), replace(BUG, final=True))
    assert then == Stop(End.FAILED, "rank 1 failed at step 7: ValueError: bad row")


def test_no_restart_allowed_means_that_the_first_failure_is_told_as_it_is() -> None:
    assert fail(RestartBudget(0))[1] == Stop(End.FAILED, "rank 1 failed: Killed: its process is gone")


def test_announced_losses_have_a_budget_of_their_own_and_no_pause() -> None:
    restarts = RestartBudget(0, max_preemptions=2)
    for _ in range(2):
        restarts, then = restarts.after(AttemptEnd(End.DRAINED, 0), 0.9)
        assert then == Retry(0.0)
    _, then = restarts.after(AttemptEnd(End.DRAINED, 0), 0.9)
    assert isinstance(then, Stop)
    assert "max_preemptions=2" in then.reason


@given(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 4)), st.lists(ends, max_size=60), st.floats(0, 0.999))
def test_whatever_happens_the_pause_and_the_counts_stay_within_their_bounds(
    budget: int, preemptions: int | None, story: list[AttemptEnd], luck: float
) -> None:
    restarts = RestartBudget(budget, preemptions)
    for ended in story:
        after, then = restarts.after(ended, luck)
        assert after.progress == max(restarts.progress, ended.progress)
        assert after.failures <= restarts.failures + (ended.how is End.FAILED)
        if isinstance(then, Stop):
            break
        assert ended.how in (End.FAILED, End.DRAINED, End.GROWING)
        assert 0 <= then.pause_s <= LONGEST_PAUSE_S
        assert after.failures <= budget
        assert preemptions is None or after.preemptions <= preemptions
        assert then.pause_s == 0 or ended.how is End.FAILED
        restarts = after


@given(st.lists(ends.filter(lambda ended: ended.how in (End.GROWING, End.DRAINED)), max_size=30))
def test_growth_and_drains_do_not_count_as_failures(story: list[AttemptEnd]) -> None:
    restarts = RestartBudget(0)
    for ended in story:
        restarts, then = restarts.after(ended, 0.5)
        assert then == Retry(0.0)


def test_a_step_back_that_the_run_decided_on_costs_no_restart_and_no_pause() -> None:
    restarts = RestartBudget(max_restarts=0)
    planned = Cause("RolledBack", "a spike", 0, "a", 7, planned=True)
    for _ in range(3):
        restarts, then = restarts.after(AttemptEnd(End.FAILED, 0, planned), 0.5)
        assert then == Retry(0.0)
    assert restarts.failures == 0
