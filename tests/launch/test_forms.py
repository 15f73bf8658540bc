"""Tests that one config gives curves that are equal to the bit under every launcher, also after kill -9."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from mlflow.tracking import MlflowClient
from tiny_run import tiny

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.manifest import committed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STEPS = 12
LIMIT_S = 1200.0  # Ends a command that hangs. A command takes 20 s, and more than 400 s on a very busy machine.
RUN = ("-m", "emocap_pretrain.run")
PROGRESS = re.compile(r"step \d+/\d+ · .*| *\d+%\|.*")
OWN = re.compile(
    r"Starting with Ray; the run's folder is .*"
    r"|(\[rank 0\] )?texts that are cut, of the first .*"  # The tiny towers read 16 and 24 tokens.
    r"|\d+:\d+ on 2 ranks, without a restart"
    r"|Run .*"
    r"|[┌├│└].*"
    r"|Checkpoints are in .*"
    r"|Look at it:"
    r"|.*mlflow ui --backend-store-uri .*"
    r"|this run: http.*|all runs: http.*"
)
MOST_LINES = 16
# Messages about a machine that is busy with other work; they say nothing about the run.
BUSY = re.compile(r"times as long as the median rank|^(\[rank 0\] )?training waited .* for the checkpoint")


@dataclass(frozen=True)
class Place:
    """A folder for the runs of this file, and the data that they share."""

    folder: Path
    faces: str
    env: dict[str, str]

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def config(self, name: str, *, workers: int = 0) -> Path:
        """Writes `cfg.yaml` into a new folder for the run; `workers` is the number of loader processes of a rank."""
        folder = self.folder / name
        folder.mkdir()
        tree = tiny("run", self.faces, self.tracking, "artifacts", steps=STEPS, ranks=2)
        tree |= {
            "name": name,
            "data": tree["data"] | {"workers": workers},
            "optimizer": {"lr": 1e-2, "warmup_steps": 2},
        }
        path = folder / "cfg.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def curve(self, config: Path) -> list[tuple[int, float]]:
        """Returns step and loss of every point that MLflow has of a run."""
        client = MlflowClient(self.tracking)
        run_id = json.loads((config.parent / "run" / "run.json").read_text())["run_id"]
        assert client.get_run(run_id).info.status == "FINISHED"
        return sorted((point.step, point.value) for point in client.get_metric_history(run_id, "loss"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("forms")
    faces = str(folder / "faces")
    write_shards(records(24, pixels=32), faces, samples_per_shard=7)
    outside = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "RAY_", "SLURM_", "TORCHELASTIC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    # The path is short, because Ray creates sockets in it. No other cluster of this machine uses the folder.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray:
        env |= {
            "PATH": f"{BIN}:{env['PATH']}",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_TMPDIR": ray,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        yield Place(folder, faces, env)


@dataclass(frozen=True)
class Healthy:
    """An undisturbed run, and the output of its launcher and its ranks."""

    config: Path
    printed: str


@pytest.fixture(scope="module")
def under_torchrun(place: Place) -> Healthy:
    config = place.config("unbroken")
    return Healthy(config, finished(torchrun(config), place, config.parent))


@pytest.fixture(scope="module")
def on_local_ray(place: Place) -> Healthy:
    config = place.config("local-ray")
    return Healthy(config, finished(["python", *RUN, "cfg.yaml"], place, config.parent))


@pytest.fixture(scope="module")
def under_deepspeed(place: Place) -> Healthy:
    """Starts `emocap pretrain` without an argument, so that it reads `cfg.yaml` in its folder."""
    config = place.config("deepspeed")
    return Healthy(config, finished(deepspeed(), place, config.parent))


@pytest.fixture(scope="module")
def unbroken(place: Place, under_torchrun: Healthy) -> list[tuple[int, float]]:
    """Returns the curve of an undisturbed run under torchrun."""
    curve = place.curve(under_torchrun.config)
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    assert curve[-1][1] < curve[0][1]
    return curve


def torchrun(config: Path) -> list[str]:
    return ["torchrun", "--nproc_per_node", "2", "--master_port", free_port(), *RUN, str(config)]


def deepspeed(*arguments: str) -> list[str]:
    ranks = ("--num_nodes", "1", "--num_gpus", "2", "--master_port", free_port())
    return ["deepspeed", "--quiet", *ranks, str(ROOT / "launch" / "pretrain.py"), *arguments]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def started(command: Sequence[str], place: Place, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yields a process and the file of its output. Afterwards the process and its children are killed."""
    log = place.folder / f"{time.monotonic_ns()}.log"
    program = str(BIN / command[0])
    with (
        log.open("wb") as out,
        subprocess.Popen([program, *command[1:]], cwd=folder, env=place.env, stdout=out, stderr=out) as process,
    ):
        try:
            yield process, log
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGKILL to a process and all its descendants at once."""
    if process.poll() is None:
        family = psutil.Process(process.pid)
        family.suspend()
        for member in [*family.children(recursive=True), family]:
            member.kill()
    process.wait(20)


def finished(command: Sequence[str], place: Place, folder: Path) -> str:
    """Returns the output of a command that must succeed."""
    with started(command, place, folder) as (process, log):
        code = process.wait(LIMIT_S)
        text = log.read_text()
        assert code == 0, text[-4000:]
        return text


def wait_for(condition: str, ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None, f"ended before {condition}: {log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"no {condition} in {LIMIT_S} s: {log.read_text()[-4000:]}"
        time.sleep(0.01)


def test_local_ray_gives_the_curve_of_torchrun(
    place: Place, unbroken: list[tuple[int, float]], on_local_ray: Healthy
) -> None:
    assert place.curve(on_local_ray.config) == unbroken
    assert "Run local-ray" in on_local_ray.printed


@pytest.mark.parametrize("launcher", ["on_local_ray", "under_torchrun", "under_deepspeed"])
def test_a_healthy_run_prints_its_own_few_lines_and_no_other(request: pytest.FixtureRequest, launcher: str) -> None:
    healthy: Healthy = request.getfixturevalue(launcher)
    lines = [line for line in re.split(r"[\r\n]+", healthy.printed) if line.strip()]
    rest = [line for line in lines if not PROGRESS.fullmatch(line)]  # Their number depends on timing.
    rest = [line for line in rest if not BUSY.search(line)]
    assert [line for line in rest if not OWN.fullmatch(line)] == []
    assert len(rest) <= MOST_LINES


def test_a_ray_job_gives_the_curve_of_torchrun(place: Place, unbroken: list[tuple[int, float]]) -> None:
    config = place.config("ray-job")
    port = free_port()
    head = ["ray", "start", "--head", "--block", "--port", free_port(), "--dashboard-host", "127.0.0.1"]
    head += ["--dashboard-port", port, "--dashboard-agent-listen-port", free_port()]
    head += ["--ray-client-server-port", free_port(), "--num-cpus", "2", "--object-store-memory", "150000000"]
    head += ["--temp-dir", place.env["RAY_TMPDIR"], "--disable-usage-stats"]
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5) as reply:
                return reply.status == 200
        except urllib.error.HTTPError as error:
            return error.code == 401  # The head runs, and requires the token.
        except OSError:
            return False

    with started(head, place, place.folder) as (process, log):
        wait_for("dashboard", answers, process, log)
        # A job runs in the folder where the head was started, so its paths are absolute.
        job = (str(BIN / "python"), *RUN, str(config), f"url={config.parent / 'run'}")
        finished(["ray", "job", "submit", "--address", address, "--", *job], place, config.parent)
    assert place.curve(config) == unbroken


def test_deepspeed_without_argument_takes_cfg_yaml_of_its_folder_and_gives_the_curve_of_torchrun(
    place: Place, unbroken: list[tuple[int, float]], under_deepspeed: Healthy
) -> None:
    assert place.curve(under_deepspeed.config) == unbroken


# The drills kill runs under the other launchers.
def test_a_run_that_was_killed_resumes_to_the_unbroken_curve_in_the_same_mlflow_run(
    place: Place, unbroken: list[tuple[int, float]]
) -> None:
    config = place.config("killed", workers=2)
    store = open_store(config.parent / "run")
    with started(torchrun(config), place, config.parent) as (process, log):
        wait_for("checkpoint", lambda: committed(store), process, log)
        kill(process)
    assert process.returncode != 0
    assert 0 < committed(store)[0].step < STEPS
    first = json.loads(store.read("run.json"))["run_id"]
    text = finished(torchrun(config), place, config.parent)
    assert "resuming from step" in text
    assert json.loads(store.read("run.json"))["run_id"] == first
    assert place.curve(config) == unbroken
