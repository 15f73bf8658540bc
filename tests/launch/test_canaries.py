"""Tests that secrets of environment and config appear in nothing that a run prints or writes, also if it fails."""

import base64
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from emocap_shards.writer import write_shards
from tiny_run import tiny

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.terminal import FAILED

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "launch"))
from local_s3 import BUCKET, LocalS3  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]

LIMIT_S = 1200.0
OUTSIDE = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "RAY_", "SLURM_", "TORCHELASTIC_", "AWS_", "MLFLOW_")


def canary(kind: str) -> str:
    """Returns a unique secret with the characters of an AWS key that a parser of URLs may misread."""
    return f"{kind}/{secrets.token_hex(6)}+{secrets.token_hex(6)}"


@dataclass(frozen=True)
class Nest:
    """A folder for everything that a run writes to disk, the canaries, and the store that has one of them as its
    secret.
    """

    folder: Path
    s3: LocalS3
    tracking: str
    env: dict[str, str]
    canaries: dict[str, str] = field(repr=False)

    def run(self, command: list[str], **changes: str) -> tuple[int, str]:
        env = {**self.env, **changes}
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def leaks(self, output: str, **more: str) -> list[str]:
        """Returns where a canary can be read: in the output, a file, or an object of the bucket."""
        known = {**self.canaries, **more}
        places = {"the terminal": output.encode(), **files(self.folder), **objects(self.s3)}
        return [f"{kind} in {place}" for place, data in places.items() for kind in sorted(found(data, known))]


def found(data: bytes, canaries: dict[str, str]) -> set[str]:
    """Returns the canaries of which the bytes contain a half, in any URL encoding, or as Basic authorization."""
    return {
        kind
        for kind, text in canaries.items()
        if any(form in data for form in (*_halves(text), base64.b64encode(f"user:{text}".encode())))
    }


def _halves(text: str) -> list[bytes]:
    """Returns the parts of a secret between the characters that may be written in another form."""
    return [part.encode() for part in re.split("[/+]", text) if len(part) >= 12]


def files(folder: Path) -> dict[str, bytes]:
    """Returns every regular file below the folder."""
    inside = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): path.read_bytes() for path in inside}


def objects(s3: LocalS3) -> dict[str, bytes]:
    client = s3.client()
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]
    return {f"s3://{BUCKET}/{key}": client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Yields the host and port of an MLflow server, and the folder of its database, artifacts and log."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([*command, *places], env=env, stdout=log, stderr=log, start_new_session=True) as it,
    ):
        try:
            deadline = time.monotonic() + LIMIT_S
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert it.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.3)
            yield f"127.0.0.1:{port}", folder
        finally:
            os.killpg(it.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def nest(tmp_path_factory: pytest.TempPathFactory, server: tuple[str, Path]) -> Iterator[Nest]:
    kinds = ("s3-key", "s3-secret", "mlflow-password", "ray-token", "hub-token", "plain")
    canaries = {kind: canary(kind.replace("-", "")) for kind in kinds}
    for kind in ("s3-key", "ray-token"):  # These two must not contain a slash.
        canaries[kind] = canaries[kind].replace("/", "").replace("+", "")
    credentials = (canaries["s3-key"], canaries["s3-secret"])
    with (
        tempfile.TemporaryDirectory(prefix="c", ignore_cleanup_errors=True) as name,  # Short, for sockets of Ray.
        LocalS3(tmp_path_factory.mktemp("s3"), credentials=credentials) as s3,
    ):
        folder = Path(name)
        for part in ("tmp", "cache", "ray"):
            (folder / part).mkdir()
        write_shards(records(24, pixels=32), str(folder / "faces"), samples_per_shard=7)
        env = {key: value for key, value in os.environ.items() if not key.startswith(OUTSIDE)}
        env |= s3.environment() | {
            "PATH": f"{BIN}:{env['PATH']}",
            "TMPDIR": str(folder / "tmp"),
            "RAY_TMPDIR": str(folder / "ray"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": canaries["ray-token"],
            "HF_TOKEN": canaries["hub-token"],
            "TRACKING": f"http://user:{quote(canaries['mlflow-password'], safe='')}@{server[0]}",
            "PLAIN": canaries["plain"],
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "EMOCAP_STORE_DEADLINE_S": "5",
        }
        yield Nest(folder, s3, server[0], env, canaries)


def written(nest: Nest, name: str, ranks: int) -> str:
    """Returns the path of a config whose tracking URI, with its password, comes from the environment."""
    data = str(nest.folder / "faces")
    tree = tiny(f"s3://{BUCKET}/{name}", data, "${oc.env:TRACKING}", None, steps=4, ranks=ranks)
    tree["data"] |= {"workers": 1, "cache_gb": 0}
    tree["evaluation"] = {"url": data, "templates": ["a face, ${oc.env:PLAIN}: {}"]}
    (nest.folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return f"{name}.yaml"


def alone() -> dict[str, str]:
    """Returns the environment variables that a launcher sets for one rank."""
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


RUN = ("-m", "emocap_pretrain.run")


def test_the_search_finds_secrets(nest: Nest) -> None:
    inside = files(nest.s3.folder)
    assert {"s3-key", "s3-secret"} <= set().union(*(found(data, nest.canaries) for data in inside.values()))
    assert nest.leaks(f"Authorization: {nest.canaries['ray-token']}") == ["ray-token in the terminal"]


@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_a_run_leaves_no_secret(nest: Nest, server: tuple[str, Path], launcher: str) -> None:
    config = written(nest, launcher, ranks=2)
    torchrun = ["torchrun", "--nproc_per_node", "2", "--master_port", free_port()]
    command = [*torchrun, *RUN] if launcher == "torchrun" else ["python", *RUN]
    code, output = nest.run([str(BIN / command[0]), *command[1:], config])
    assert code == 0, output[-4000:]
    assert f"{launcher}/report.json" in "".join(objects(nest.s3))
    assert nest.leaks(output) == []
    assert not [kind for data in files(server[1]).values() for kind in found(data, nest.canaries)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("wrong-secret", {"AWS_SECRET_ACCESS_KEY": "{wrong}"}),
        ("wrong-key", {"AWS_ACCESS_KEY_ID": "{wrong}"}),
        ("tracker-away", {"TRACKING": "http://user:{wrong}@127.0.0.1:1"}),
        ("tracker-of-no-driver", {"TRACKING": "postgresql://user:{wrong}@127.0.0.1:1/mlflow"}),
    ],
)
def test_a_run_that_fails_says_why_without_the_secret(nest: Nest, name: str, changes: dict[str, str]) -> None:
    wrong = canary("wrong")
    config = written(nest, name, ranks=1)
    given = {key: value.format(wrong=wrong) for key, value in changes.items()}
    ended, output = nest.run([str(BIN / "python"), *RUN, config], **alone(), **given)
    assert ended == FAILED, output[-4000:]
    assert "error:" in output
    assert nest.leaks(output, wrong=wrong) == []


@pytest.mark.parametrize("option", [(), ("--debug",)], ids=["line", "traceback"])
def test_a_refused_bucket_is_named_without_the_secret_of_its_url(nest: Nest, option: tuple[str, ...]) -> None:
    wrong = canary("wrong")
    config = written(nest, "refused", ranks=1)
    url = f"url=s3://user:{wrong}@absent-bucket/run"
    ended, output = nest.run([str(BIN / "python"), *RUN, config, url, *option], **alone())
    assert ended != 0
    assert nest.leaks(output, wrong=wrong) == []
