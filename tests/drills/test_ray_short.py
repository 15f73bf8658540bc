"""A rank is killed, and a whole host loses power. Every change is tried on the second fault."""

import time
from collections.abc import Callable

import pytest
from ray_cluster import Job, RayCluster
from testbed import ELASTIC, STEPS, Run, Testbed, Unbroken, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(540, func_only=True)]
Note = Callable[[str, float], None]


# test_forms.py tests that a run resumes to the bit, and test_supervise.py that Ray starts a killed rank again.
@pytest.mark.drill
def test_a_rank_that_is_killed_is_started_again_and_the_curve_is_unbroken_to_the_bit(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken, note: Note
) -> None:
    run = testbed.new_run("kill-rank")
    job = cluster.submit(run)
    note("from ray job submit to the first step", until("first step", lambda: run.step, hint=lambda: job.text))
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    cluster.rank_on(2).kill()
    note("from kill -9 of a rank to the next step", next_step_s(run, job))
    job.succeed()
    unbroken.check(run)
    assert len(run.attempts()) == 2


def test_after_the_loss_of_a_host_the_job_continues_with_fewer_ranks(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken, note: Note
) -> None:
    run = testbed.new_run("power-off", cluster=ELASTIC)
    job = cluster.submit(run)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    testbed.hosts.power_off(3)
    note("from a power cut to the next step on fewer ranks", next_step_s(run, job))
    job.succeed()
    unbroken.check(run, same_ranks=False)
    assert [each.ranks for each in run.attempts()] == [3, 2]


def next_step_s(run: Run, job: Job) -> float:
    """Measures the time from now until a second start has done a new step."""
    began, before = time.monotonic(), run.step
    assert before < STEPS
    until("second attempt", lambda: len(run.attempts()) == 2, hint=lambda: job.text)
    until("next step", lambda: run.step > before + 1, hint=lambda: job.text)  # One row may have been on its way.
    return time.monotonic() - began
