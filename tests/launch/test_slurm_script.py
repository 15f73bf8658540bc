"""Tests launch/slurm.sh with fakes of SLURM's programs: their arguments, and when the job is requeued."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from emocap_shards.writer import write_shards
from tiny_run import tiny

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.terminal import STOPPED

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPT = ROOT / "launch" / "slurm.sh"
SUBMITTED = ("SLURM_SUBMIT_DIR", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK")
# Simulates two nodes, both on this host, with one task each and the variables that srun sets.
SRUN = """
while [ "${1#-}" != "$1" ]; do shift; done
for rank in 0 1; do
  SLURM_STEP_ID=0 SLURM_PROCID=$rank SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 SLURM_NODEID=$rank \\
    SLURM_STEP_TASKS_PER_NODE='1(x2)' SLURM_STEP_NODELIST=localhost "$@" & tasks="$tasks $!"
done
code=0
for task in $tasks; do wait $task || code=$?; done
exit $code
"""


@dataclass(frozen=True)
class Job:
    """A checkout in which the script runs, with fakes of the programs of SLURM."""

    folder: Path

    def stub(self, name: str, body: str) -> None:
        self.program(name, f'echo "{name} $*" >> {self.folder}/calls\n{body}')

    def program(self, name: str, body: str) -> None:
        path = self.folder / ".venv" / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK", "MASTER_"))}
        env |= dict(zip(SUBMITTED, (str(self.folder), "7", "3"), strict=True))
        env["XDG_CACHE_HOME"] = str(self.folder / "cache")
        pipe = subprocess.PIPE
        return subprocess.Popen(["bash", SCRIPT, *arguments], env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> int:
        with self.start(*arguments) as process:
            return process.wait(20)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    job = Job(tmp_path)
    for name in ("scontrol", "srun", "emocap"):
        job.stub(name, "")
    return job


def test_the_script_is_clean_for_shellcheck() -> None:
    done = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_ranks_get_the_arguments_and_the_cores_of_the_job(job: Job) -> None:
    assert job.run("cfg.yaml", "steps=4") == 0
    options = "--kill-on-bad-exit=0 --wait=0 --gpu-bind=none --cpus-per-task=3"
    assert job.calls() == [f"emocap restart -- srun {options} python -m emocap_pretrain.run cfg.yaml steps=4"]


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_a_job_whose_run_is_done_or_has_failed_is_not_requeued(job: Job, code: int) -> None:
    job.stub("emocap", f"exit {code}")
    assert job.run("cfg.yaml") == code
    assert len(job.calls()) == 1


def test_a_job_whose_run_was_saved_before_its_end_is_requeued(job: Job) -> None:
    job.stub("emocap", f"exit {STOPPED}")
    assert job.run("cfg.yaml") == 0
    assert job.calls()[1:] == ["scontrol requeue 7"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_at_the_signal_before_the_time_limit_ranks_save_and_the_job_is_requeued(
    job: Job, number: signal.Signals
) -> None:
    job.stub("emocap", f"trap 'sleep 0.2; exit {STOPPED}' TERM; touch {job.folder}/ready; while :; do sleep 0.05; done")
    with job.start("cfg.yaml") as process:
        while not (job.folder / "ready").exists():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(20) == 0
    assert job.calls()[1:] == ["scontrol requeue 7"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tasks_on_two_nodes_save_at_slurm_s_signal_and_the_job_is_requeued(job: Job) -> None:
    faces, run = str(job.folder / "faces"), job.folder / "run"
    write_shards(records(24, pixels=32), faces, samples_per_shard=7)
    tracking = (f"sqlite:///{job.folder}/m.db", str(job.folder / "artifacts"))
    tree = tiny(str(run), faces, *tracking, steps=100_000, ranks=2)
    (job.folder / "cfg.yaml").write_text(yaml.safe_dump(tree))
    job.stub("srun", SRUN)
    for name in ("python", "emocap"):
        job.program(name, f'exec {BIN}/{name} "$@"')
    with job.start("cfg.yaml") as process:
        try:
            deadline = time.monotonic() + 240
            while process.poll() is None and not list(run.glob("checkpoints/*/manifest.json")):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGUSR1)
            output, _ = process.communicate(timeout=240)
        except BaseException:
            kill(process)
            raise
    assert process.returncode == 0, output[-4000:]
    assert job.calls()[-1] == "scontrol requeue 7", output[-4000:]


def kill(process: subprocess.Popen[str]) -> None:
    """Kills the script and all processes that it has started."""
    script = psutil.Process(process.pid)
    for member in [*script.children(recursive=True), script]:
        member.kill()
