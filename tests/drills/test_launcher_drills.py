"""Drills faults under the launchers that need no cluster, on three hosts."""

import shutil
import signal
from collections.abc import Iterator

import pytest
from launchers import AGAIN, SSHD, codes, deepspeed, srun, ssh_servers, succeed, torchrun
from testbed import STEPS, STOPPED, Testbed, Unbroken, shown, until

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(540, func_only=True)]
needs_ssh = pytest.mark.skipif(
    not (shutil.which(SSHD) and shutil.which("pdsh")), reason="needs apt-get install openssh-server pdsh"
)


@pytest.fixture(autouse=True)
def _empty_hosts(testbed: Testbed) -> Iterator[None]:
    yield
    testbed.empty()


def test_srun_saves_at_a_signal_and_resumes_to_the_bit(testbed: Testbed, unbroken: Unbroken) -> None:
    run = testbed.new_run("srun-stopped")
    tasks = srun(testbed, run)
    until("step 7", lambda: run.step >= 7, hint=lambda: shown(tasks))
    tasks[2].send(signal.SIGTERM)  # One task that was told is enough.
    assert codes(tasks) == [STOPPED, 0, 0], shown(tasks)
    assert run.status == "KILLED"
    assert 7 <= run.saved < STEPS
    succeed(srun(testbed, run, job=2))
    unbroken.check(run)


def test_torchrun_after_the_loss_of_a_host_resumes_to_the_bit(testbed: Testbed, unbroken: Unbroken) -> None:
    run = testbed.new_run("torchrun-power")
    agents = torchrun(testbed, run)
    until("step 7", lambda: run.step >= 7, hint=lambda: shown(agents))
    testbed.hosts.power_off(3)
    assert all(codes(agents)), shown(agents)
    assert "rank 2" in agents[0].text
    assert run.saved < STEPS
    testbed.hosts.power_on(3)
    succeed(torchrun(testbed, run))
    unbroken.check(run)


def test_torchrun_under_emocap_restart_resumes_by_itself_after_the_kill_of_a_rank(
    testbed: Testbed, unbroken: Unbroken
) -> None:
    run = testbed.new_run("torchrun-again")
    wrappers = torchrun(testbed, run, under=AGAIN)
    until("checkpoint", lambda: run.saved, hint=lambda: shown(wrappers))
    testbed.hosts.processes(2, "emocap_pretrain.run")[-1].kill()
    succeed(wrappers)
    unbroken.check(run)


def test_a_cut_off_rank_0_commits_nothing_once_it_is_superseded(testbed: Testbed, unbroken: Unbroken) -> None:
    run = testbed.new_run("zombie")
    first = torchrun(testbed, run)
    until("step 12", lambda: run.step >= 12, hint=lambda: shown(first))
    testbed.hosts.cut(1)
    codes(first[1:])
    saved = run.saved
    second = torchrun(testbed, run, on=(2, 3))
    until("a step of the second start", lambda: run.saved > saved, hint=lambda: shown(second))
    testbed.hosts.heal(1)
    succeed(second)
    assert first[0].wait(120) != 0
    unbroken.check(run, same_ranks=False)


@needs_ssh
def test_deepspeed_over_ssh_saves_at_a_signal_and_resumes_after_a_power_cut(
    testbed: Testbed, unbroken: Unbroken
) -> None:
    run = testbed.new_run("deepspeed")
    ssh_servers(testbed)
    launcher = deepspeed(testbed, run)
    until("step 7", lambda: run.step >= 7, hint=lambda: shown([launcher]))
    for rank in testbed.hosts.processes(2, "launch/pretrain.py")[-1:]:
        rank.terminate()
    codes([launcher])
    saved = run.saved
    assert 7 <= saved < STEPS, shown([launcher])
    launcher = deepspeed(testbed, run)
    until("steps after it", lambda: run.step >= saved + 7, hint=lambda: shown([launcher]))
    testbed.hosts.power_off(3)
    assert codes([launcher]) != [0], shown([launcher])
    testbed.hosts.power_on(3)
    ssh_servers(testbed, on=(3,))
    succeed([deepspeed(testbed, run)])
    unbroken.check(run)
