"""Writes one run of each kind with the version that is installed, as the upgrade fixture of a release.

    git checkout RELEASE && python tests/upgrade/make_runs.py VERSION

The command leaves `tests/upgrade/VERSION.tar.xz`, which holds a small dataset, one MLflow database and
five run folders:

    alone          one rank, ended by SIGKILL after a checkpoint
    zero2          two ranks under ZeRO stage 2 and torchrun, stopped by SIGTERM
    interrupted    one rank, stopped by SIGTERM
    finished       one rank, all steps, evaluated
    quarantine     one damaged sample left out, and MLflow killed before the run was stopped: rows that were not sent

Nothing of a release is written again: later versions read these files in `test_upgrade.py`, and each release adds one.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from emocap_shards.writer import write_shards

from emocap_pretrain.captions.rendered.dataset import records

HERE = Path(__file__).parent
# The paths that the runs remember. It is fixed, so that the fixture does not depend on who made it.
PLACE = Path("/tmp/emocap-upgrade")
FACES, PIXELS, WAIT_S = 16, 16, 180.0
MANY = 1_000_000  # Steps of a run that is to be ended from outside.


def main(version: str) -> None:
    PLACE.mkdir()
    try:
        write_shards(records(FACES, pixels=PIXELS), str(PLACE / "faces"), samples_per_shard=6)
        _alone()
        _zero2()
        _interrupted()
        _finished()
        _quarantine()
        with tarfile.open(HERE / f"{version}.tar.xz", "w:xz", preset=9) as archive:
            archive.add(PLACE, arcname=version)
    finally:
        shutil.rmtree(PLACE)


def _config(kind: str, *, steps: int, **changes: Any) -> Path:
    config: dict[str, Any] = {
        "name": kind,
        "url": str(PLACE / kind),
        "steps": steps,
        "global_batch": 4,
        "data": {"url": str(PLACE / "faces"), "workers": 0, "shuffle_window": 8, "cache_gb": 0},
        "model": {
            "embedding": 8,
            "image": {
                "name": "vit_tiny_patch16_224",
                "pixels": 16,
                "options": {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2},
            },
            "text": {
                "architecture": {"width": 8, "layers": 1, "heads": 2},
                "vocabulary": 300,
                "lengths": {"global": 16, "local": 16, "summary": 24},
            },
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
        "cluster": {"device": "cpu", "threads_per_rank": 1, "timeout_s": 120},
        "checkpoint": {"every_steps": 2, "keep_last": 2},
        "tracking": {
            "uri": f"sqlite:///{PLACE}/mlflow.db",
            "artifacts": f"{PLACE}/artifacts",
            "experiment": "upgrade",
            "every_steps": 1,
        },
    }
    for key, values in changes.items():
        config[key] = {**config.get(key, {}), **values}
    path = PLACE / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _begin(config: Path, *, ranks: int = 1) -> subprocess.Popen[bytes]:
    """The run as a process; one rank has the environment that torchrun would give it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = ["-m", "emocap_pretrain.run", str(config)]
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return subprocess.Popen([sys.executable, *torchrun, *run], env=env)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return subprocess.Popen([sys.executable, *run], env=env | alone)


def _until(what: str, happened: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not happened():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{what} did not happen within {WAIT_S:.0f} s")
        time.sleep(0.1)


def _checkpoints(kind: str) -> int:
    return len(list((PLACE / kind).glob("checkpoints/*/manifest.json")))


def _end(run: subprocess.Popen[bytes], kind: str, by: signal.Signals) -> None:
    _until(f"two checkpoints of {kind}", lambda: _checkpoints(kind) >= 2)
    run.send_signal(by)
    run.wait(WAIT_S)


def _alone() -> None:
    _end(_begin(_config("alone", steps=MANY)), "alone", signal.SIGKILL)


def _zero2() -> None:
    _end(_begin(_config("zero2", steps=MANY, engine={"zero_stage": 2}), ranks=2), "zero2", signal.SIGTERM)


def _interrupted() -> None:
    _end(_begin(_config("interrupted", steps=MANY)), "interrupted", signal.SIGTERM)


def _finished() -> None:
    run = _begin(_config("finished", steps=6, evaluation={"url": str(PLACE / "faces")}))
    if run.wait(WAIT_S):
        raise RuntimeError("the finished run failed")


def _quarantine() -> None:
    """A sample whose bytes changed after packing, and an MLflow server that is killed."""
    faces = PLACE / "faces-damaged"
    shutil.copytree(PLACE / "faces", faces)
    shard = next(faces.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 0xFF  # In the first member's payload, after its header of 512 bytes.
    shard.write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([*mlflow, "--backend-store-uri", f"sqlite:///{PLACE}/mlflow.db"], start_new_session=True)
    try:
        _until("an answer of MLflow", lambda: _answers(port))
        config = _config(
            "quarantine",
            steps=MANY,
            data={"url": str(faces), "error_budget": 3},
            tracking={"uri": f"http://127.0.0.1:{port}"},
        )
        run = _begin(config)
        _until("the quarantine", (PLACE / "quarantine" / "quarantine.json").exists)
        _until("two checkpoints", lambda: _checkpoints("quarantine") >= 2)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    # Rows that fail to arrive are tried again for a while; then the run has what it could not send.
    time.sleep(3)
    run.send_signal(signal.SIGTERM)
    run.wait(WAIT_S)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main(sys.argv[1])
