"""Drills faults of a job on Ray: first the kill of a rank and the power cut of a host, then others."""

import signal
import time
from collections.abc import Callable

import pytest
from emocap_shards.store import open_store
from launchers import AGAIN
from ray_cluster import Job, RayCluster
from testbed import ELASTIC, STEPS, Run, Testbed, Unbroken, until

from emocap_pretrain.run_folder.attempts import cause, failures, newest

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(540, func_only=True)]
LONG_S = 400.0
Note = Callable[[str, float], None]


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
    """Returns the seconds from now until the second attempt has done a new step."""
    began, before = time.monotonic(), run.step
    assert before < STEPS
    until("second attempt", lambda: len(run.attempts()) == 2, hint=lambda: job.text)
    until("next step", lambda: run.step > before + 1, hint=lambda: job.text)  # One row may have been on its way.
    return time.monotonic() - began


def test_a_cut_off_host_is_replaced_and_writes_nothing_when_it_is_back(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("cut", cluster=ELASTIC)
    job = cluster.submit(run)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    before = cluster.rank_on(3)
    testbed.hosts.cut(3)
    until("second attempt", lambda: len(run.attempts()) == 2, hint=lambda: job.text)
    testbed.hosts.heal(3)
    job.succeed(LONG_S)
    unbroken.check(run, same_ranks=False)
    until("end of the rank that was cut off", lambda: not before.is_running())


def test_a_host_that_comes_back_makes_the_job_grow_at_a_checkpoint(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("grow", fault={"pace_s": 1.0}, cluster=ELASTIC)
    job = cluster.submit(run)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    cluster.kill_raylet(3)
    until("second attempt", lambda: len(run.attempts()) == 2, hint=lambda: job.text)
    cluster.join(3)
    job.succeed(LONG_S)
    unbroken.check(run, same_ranks=False)
    assert [each.ranks for each in run.attempts()] == [3, 2, 3]


def test_a_frozen_rank_is_named_and_the_job_continues(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("frozen")
    job = cluster.submit(run)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    frozen = cluster.rank_on(2)
    frozen.send_signal(signal.SIGSTOP)
    text = job.succeed(LONG_S)
    unbroken.check(run)
    assert "node2" in text
    until("end of the frozen process", lambda: not frozen.is_running())


def test_a_rank_that_keeps_all_others_waiting_is_named_and_the_job_continues(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("hang", fault={"do": "hang", "rank": 1, "step": 8})
    text = cluster.submit(run).succeed(LONG_S)
    unbroken.check(run)
    assert "rank 1" in text


def test_an_error_that_comes_once_costs_a_restart(testbed: Testbed, cluster: RayCluster, unbroken: Unbroken) -> None:
    run = testbed.new_run("once", fault={"do": "raise", "rank": 1, "step": 8})
    text = cluster.submit(run).succeed(LONG_S)
    unbroken.check(run)
    assert "rank 1" in text
    assert "a drill's error" in text


def test_an_error_that_always_comes_ends_the_job_with_its_name(testbed: Testbed, cluster: RayCluster) -> None:
    run = testbed.new_run("for-ever", fault={"do": "raise", "rank": 1, "step": 8, "times": 9})
    job = cluster.submit(run)
    assert job.wait(LONG_S) == 1
    assert "a drill's error" in job.text
    assert len(run.attempts()) == 2
    assert run.saved == 5


def test_a_rank_without_memory_is_named_and_the_job_continues(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("memory", fault={"do": "exhaust", "rank": 2, "step": 8})
    text = cluster.submit(run).succeed(LONG_S)
    unbroken.check(run)
    assert "memory" in text.lower()
    store = open_store(run.url)
    left = cause(failures(store, newest(store) - 1))
    assert left is not None
    assert (left.rank, left.kind) == (2, "MemoryError")


def test_an_announced_loss_costs_no_step(testbed: Testbed, cluster: RayCluster, unbroken: Unbroken) -> None:
    run = testbed.new_run("drain", fault={"pace_s": 0.5}, cluster={**ELASTIC, "max_restarts": 0})
    job = cluster.submit(run)
    until("step 7", lambda: run.step >= 7, hint=lambda: job.text)
    cluster.drain(3, deadline_s=60)
    until("second attempt", lambda: len(run.attempts()) == 2, hint=lambda: job.text)
    assert run.saved >= run.step  # Nothing is done again.
    testbed.hosts.power_off(3)
    job.succeed(LONG_S)
    unbroken.check(run, same_ranks=False)


def test_a_job_that_is_stopped_saves_and_resumes_when_it_is_submitted_again(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("stop")
    job = cluster.submit(run)
    until("step 7", lambda: run.step >= 7, hint=lambda: job.text)
    cluster.stop(job)
    job.wait()  # Ray's own command gives 0 for what was stopped.
    assert "stopped and saved" in job.text
    assert run.status == "KILLED"
    assert 7 <= run.saved < STEPS
    cluster.submit(run).succeed(LONG_S)
    unbroken.check(run)


def test_the_loss_of_the_head_is_survived_by_emocap_restart(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("head")
    job = cluster.submit(run, under=AGAIN)
    until("checkpoint", lambda: run.saved, hint=lambda: job.text)
    testbed.hosts.power_off(1)  # The command that follows the job would wait for the silent host without end.
    until("end of the job", lambda: "Starting again" in job.text, hint=lambda: job.text)
    testbed.empty()
    cluster.up()
    job.succeed(LONG_S)
    unbroken.check(run)


def test_an_object_store_that_is_unreachable_for_a_while_costs_only_time(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("store", cluster={"timeout_s": 120})
    job = cluster.submit(run)
    for step in (6, 14):  # Samples are read at every step, and checkpoints are written at every fifth.
        until(f"step {step}", lambda step=step: run.step >= step, hint=lambda: job.text)
        testbed.s3.kill()
        time.sleep(8)
        testbed.s3.start()
    job.succeed(LONG_S)
    unbroken.check(run)
    assert len(run.attempts()) == 1


def test_a_tracker_that_is_unreachable_for_a_while_gets_every_row_once(
    testbed: Testbed, cluster: RayCluster, unbroken: Unbroken
) -> None:
    run = testbed.new_run("tracker", fault={"pace_s": 0.5})
    job = cluster.submit(run)
    until("step 6", lambda: run.step >= 6, hint=lambda: job.text)
    testbed.mlflow.kill()
    until("a checkpoint meanwhile", lambda: run.saved >= 10, hint=lambda: job.text)
    testbed.mlflow.spawn()
    testbed.mlflow.wait()
    job.succeed(LONG_S)
    unbroken.check(run)
    assert len(run.attempts()) == 1
