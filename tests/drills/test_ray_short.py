"""The two faults that every change is tried on: a rank is killed, and a whole host is gone."""

import pytest
from ray_cluster import RayCluster
from testbed import STEPS, Testbed, Unbroken, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_rank_that_is_killed_is_started_again_and_the_curve_is_unbroken_to_the_bit(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("kill-rank")
    job = cluster.submit(run)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    cluster.rank_on(2).kill()
    assert run.saved < STEPS
    job.succeed()
    unbroken.check(run)
    assert len(run.starts()) == 2


def test_after_the_loss_of_a_host_the_job_goes_on_with_fewer_ranks(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("power-off", cluster={"min_ranks": 2, "patience_s": 0})
    job = cluster.submit(run)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    testbed.hosts.power_off(3)
    job.succeed()
    unbroken.check(run, same_ranks=False)
    assert [start["ranks"] for start in run.starts()] == [3, 2]
