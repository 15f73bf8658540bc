import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from emocap_cluster import relaunch as relaunching
from emocap_cluster.processes import ProcessTree
from emocap_cluster.relaunch import RelaunchResult, relaunch
from emocap_cluster.restarts import Cause, End, RestartBudget

# A rank that saves at SIGTERM, and a launcher that waits for two ranks. `ready` exists once both handle the signal.
READY = "touch ready-$RANK; [ -e ready-$((1 - RANK)) ] && touch ready"
RANK = f'trap "touch saved-$RANK; exit 75" TERM; {READY}; while :; do sleep 0.1; done'
LAUNCHER = f"for r in 0 1; do RANK=$r WORLD_SIZE=2 bash -c '{RANK}' & done; wait -n; code=$?; wait; exit $code"


@dataclass
class FakeRecord:
    """A run that is done once its folder has a file `done`."""

    folder: Path
    causes: Sequence[Cause] = ()
    how: str = ""

    def stopped(self) -> bool:
        return self.how in {"told", "asked"}

    def asked_to_stop(self) -> bool:
        return self.how == "asked"

    def done(self) -> bool:
        return (self.folder / "done").exists()

    def progress(self) -> int:
        return 0

    def failures(self) -> Sequence[Cause]:
        return self.causes


@dataclass
class Shell:
    """Runs scripts in a folder, and records the lines for the user and the stop requests through the run's folder."""

    folder: Path
    said: list[str] = field(default_factory=list)
    asked: int = 0

    def run(
        self,
        script: str,
        *,
        budget: int = 3,
        causes: Sequence[Cause] = (),
        how: str = "",
        answers: Callable[[], bool] = lambda: True,
        still_trains: Callable[[], bool] = lambda: False,
        least_pause_s: float = 0.0,
    ) -> RelaunchResult:
        return relaunch(
            ["bash", "-c", f"cd {self.folder}; echo >> starts; {script}"],
            record=FakeRecord(self.folder, causes, how),
            restarts=RestartBudget(budget),
            ask=self.ask,
            say=self.said.append,
            answers=answers,
            still_trains=still_trains,
            least_pause_s=least_pause_s,
        )

    def ask(self) -> None:
        self.asked += 1
        (self.folder / "requested").touch()

    @property
    def starts(self) -> int:
        return len((self.folder / "starts").read_text())

    def when(self, name: str, act: Callable[[], object]) -> None:
        """Calls `act` as soon as the file exists."""

        def wait() -> None:
            while not (self.folder / name).exists():
                time.sleep(0.05)
            act()

        threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def told(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def test_a_command_that_fails_runs_again_until_its_run_is_done(shell: Shell) -> None:
    outcome = shell.run("if [ $(wc -l < starts) -lt 3 ]; then exit 3; fi; touch done")
    assert outcome.over.how is End.DONE
    assert shell.starts == 3
    assert "the command ended with code 3" in shell.said[0]
    assert "Starting again now, from the beginning." in shell.said[0]


def test_a_restart_waits_for_launchers_on_other_hosts(shell: Shell) -> None:
    shell.run("if [ $(wc -l < starts) -lt 2 ]; then exit 3; fi; touch done", least_pause_s=1.0)
    assert "Starting again in 1 s, from the beginning." in shell.said[0]


def test_a_command_that_always_fails_is_given_up_with_its_exit_code(shell: Shell) -> None:
    outcome = shell.run("exit 3", budget=1)
    assert (outcome.over.how, outcome.code, shell.starts) == (End.FAILED, 3, 2)


def test_a_wrong_setting_is_not_tried_again(shell: Shell) -> None:
    outcome = shell.run("exit 2")
    assert (outcome.over.how, outcome.code, shell.starts) == (End.FAILED, 2, 1)


def test_the_same_error_of_a_rank_twice_is_a_bug(shell: Shell) -> None:
    outcome = shell.run("exit 1", causes=[Cause("ValueError", "bad row", rank=1, step=7)])
    assert shell.starts == 2
    assert outcome.over.reason.startswith("rank 1 failed at step 7: ValueError: bad row")


def test_a_run_that_was_stopped_by_others_is_left_alone(shell: Shell) -> None:
    assert shell.run("exit 75").over.how is End.STOPPED
    assert shell.run("exit 0").over.how is End.STOPPED
    assert shell.starts == 2


def test_a_run_that_a_person_ended_is_left_alone_whatever_the_code(shell: Shell) -> None:
    """`ray job submit` ends with code 1 if the job ended with 75."""
    assert shell.run("exit 1", how="asked").over.how is End.STOPPED
    assert shell.starts == 1


def test_a_failure_that_the_job_itself_has_cured_does_not_start_a_stopped_run_again(shell: Shell) -> None:
    cured = [Cause("OutOfMemoryError", "CUDA out of memory", rank=1, step=7)]
    assert shell.run("exit 0", how="told", causes=cured).over.how is End.STOPPED
    assert shell.starts == 1


def test_a_job_that_continues_without_its_command_is_not_started_again(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel to the head breaks, but the job continues to train."""
    monkeypatch.setattr(relaunching, "CHECK_S", 0.05)
    looks = iter([True, True, True])

    def still_trains() -> bool:
        if next(looks, False):
            return True
        (shell.folder / "done").touch()
        return False

    outcome = shell.run("exit 1", still_trains=still_trains)
    assert (outcome.over.how, shell.starts) == (End.DONE, 1)


def test_sigterm_tells_every_rank_at_once_and_waits_for_them(shell: Shell) -> None:
    shell.when("ready", told(signal.SIGTERM))
    outcome = shell.run(LAUNCHER)
    assert outcome.over.how is End.STOPPED
    assert not outcome.interrupted
    assert {path.name for path in shell.folder.glob("saved-*")} == {"saved-0", "saved-1"}
    assert (shell.starts, shell.asked) == (1, 0)


def test_where_no_rank_is_on_this_host_the_folder_of_the_run_is_asked(shell: Shell) -> None:
    shell.when("starts", told(signal.SIGTERM))
    outcome = shell.run("while [ ! -e requested ]; do sleep 0.1; done")
    assert outcome.over.how is End.STOPPED
    assert shell.asked == 1


def test_ranks_whose_launcher_was_killed_save_and_end_before_the_next_start(shell: Shell) -> None:
    (shell.folder / "launcher.sh").write_text(f"echo $$ > launcher; {LAUNCHER}")
    script = "if [ -e saved-0 ]; then touch done; else bash launcher.sh; fi; exit 0"
    shell.when("ready", lambda: os.kill(int((shell.folder / "launcher").read_text()), signal.SIGKILL))
    outcome = shell.run(script)
    assert outcome.over.how is End.DONE
    assert shell.starts == 2
    assert {path.name for path in shell.folder.glob("saved-*")} == {"saved-0", "saved-1"}
    assert "2 ranks survived the command" in shell.said[0]


def test_a_command_whose_head_is_silent_is_ended_and_run_again(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command waits without end, as `ray job submit` does if the head has lost its power."""
    monkeypatch.setattr(relaunching, "CHECK_S", 0.1)
    monkeypatch.setattr(relaunching, "UNREACHABLE_S", 0.5)
    script = "if [ $(wc -l < starts) -lt 2 ]; then touch waits; sleep 600; fi; touch done"
    outcome = shell.run(script, answers=lambda: not (shell.folder / "waits").exists())
    assert outcome.over.how is End.DONE
    assert shell.starts == 2
    assert "code 137; the service that it depends on did not answer for " in shell.said[0]


def test_the_second_ctrl_c_ends_everything_at_once(shell: Shell) -> None:
    shell.when("ready", lambda: (told(signal.SIGINT)(), time.sleep(0.7), told(signal.SIGINT)()))
    with pytest.raises(KeyboardInterrupt):
        shell.run(LAUNCHER.replace("exit 75", "sleep 60"))
    assert not list(shell.folder.glob("done"))


def test_the_exit_code_of_a_killed_command_is_that_of_a_shell(tmp_path: Path) -> None:
    with ProcessTree(["bash", "-c", "kill -9 $$"]) as family:
        while (code := family.wait(0.1)) is None:
            pass
        assert code == 137
        assert family.members() == []
