"""launch/slurm.sh with stand-ins for SLURM's programs: what it asks of them, and when the job queues again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from emocap_shards.store import open_store
from emocap_shards.synthetic.dataset import records
from emocap_shards.writer import write_shards

from emocap_pretrain.evaluation.report import Report
from emocap_pretrain.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPT = ROOT / "launch" / "slurm.sh"
SUBMITTED = ("SLURM_SUBMIT_DIR", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK")
STEPS = 4
# Two nodes that both are this host, two tasks on each, told as srun tells.
SRUN = """
while [ "${1#-}" != "$1" ]; do shift; done
for rank in 0 1 2 3; do
  SLURM_STEP_ID=0 SLURM_PROCID=$rank SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=$((rank % 2)) SLURM_NODEID=$((rank / 2)) \\
    SLURM_STEP_TASKS_PER_NODE='2(x2)' SLURM_STEP_NODELIST=localhost "$@" & tasks="$tasks $!"
done
echo $tasks > tasks
for task in $tasks; do wait $task || exit $?; done
"""


@dataclass(frozen=True)
class Job:
    """A checkout with stand-ins for what SLURM brings, in which the script runs."""

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

    def finish(self) -> None:
        """The run of `cfg.yaml` is done."""
        report = Report("x", "x", STEPS, 1.0, 1, 1.0, 1.0, "x", "x", None)
        RunFolder(open_store(self.folder / "run")).conclude(report)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    job = Job(tmp_path)
    job.program("python", f'exec {BIN}/python "$@"')
    for name in ("scancel", "scontrol", "srun"):
        job.stub(name, "")
    job.stub("emocap", 'shift 2; "$@"')
    tree = {"name": "x", "url": str(tmp_path / "run"), "steps": STEPS, "global_batch": 8, "data": {"url": "faces"}}
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(tree))
    return job


def test_the_script_is_clean_for_shellcheck() -> None:
    done = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_ranks_get_the_arguments_and_the_cores_of_the_job(job: Job) -> None:
    job.finish()
    assert job.run("cfg.yaml", "steps=4") == 0
    step = "srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task=3 python -m emocap_pretrain.run cfg.yaml steps=4"
    assert job.calls() == [f"emocap restart -- {step}", step]


def test_a_run_that_is_done_does_not_queue_again(job: Job) -> None:
    job.finish()
    assert job.run("cfg.yaml") == 0
    assert not any(call.startswith("scontrol") for call in job.calls())


def test_ranks_that_ended_well_before_the_last_step_queue_again(job: Job) -> None:
    job.finish()
    assert job.run("cfg.yaml", "steps=5") == 0
    assert job.calls()[-1] == "scontrol requeue 7"


def test_a_job_that_failed_ends_with_its_code_and_does_not_queue_again(job: Job) -> None:
    job.stub("srun", "exit 2")
    assert job.run("cfg.yaml") == 2
    assert not any(call.startswith("scontrol") for call in job.calls())


def test_the_signal_before_the_time_limit_has_the_ranks_save_and_the_job_queue_again(job: Job) -> None:
    job.stub("srun", f"until [ -e {job.folder}/told ]; do sleep 0.05; done; sleep 0.2")
    job.stub("scancel", f"touch {job.folder}/told")
    with job.start("cfg.yaml") as process:
        while not (job.folder / "calls").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == 0
    assert job.calls()[-2:] == ["scancel --signal=TERM 7", "scontrol requeue 7"]


@pytest.mark.slow
def test_four_tasks_on_two_nodes_save_when_told_and_the_next_start_ends_the_run(job: Job) -> None:
    faces = str(job.folder / "faces")
    write_shards(records(24, pixels=32), faces, samples_per_shard=7)
    tiny = {
        "embedding": 16,
        "image": {
            "name": "vit_tiny_patch16_224",
            "pixels": 16,
            "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        },
        "text": {"architecture": {"width": 16, "layers": 1, "heads": 2}, "vocabulary": 300},
    }
    tree = yaml.safe_load((job.folder / "cfg.yaml").read_text()) | {
        "steps": 100_000,
        "data": {"url": faces, "workers": 0},
        "model": tiny,
        "cluster": {"device": "cpu", "threads_per_rank": 1},
        "tracking": {
            "uri": f"sqlite:///{job.folder}/m.db",
            "artifacts": str(job.folder / "artifacts"),
            "every_steps": 1,
        },
    }
    (job.folder / "cfg.yaml").write_text(yaml.safe_dump(tree))
    job.stub("srun", SRUN)
    job.stub("scancel", "kill -TERM $(cat tasks)")
    with job.start("cfg.yaml") as process:
        while process.poll() is None and not (job.folder / "run" / "run.json").exists():
            time.sleep(0.1)
        time.sleep(5)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output[-4000:]
    assert job.calls()[-1] == "scontrol requeue 7", output[-4000:]
    saved = max(int(path.name.removeprefix("step-")) for path in (job.folder / "run" / "checkpoints").iterdir())
    with job.start("cfg.yaml", f"steps={saved + 2}") as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output[-4000:]
    assert RunFolder(open_store(job.folder / "run")).report(saved + 2) is not None, output[-4000:]
    assert not job.calls()[-1].startswith("scontrol")
