import os
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from emocap_cluster import relaunch as relaunching
from emocap_shards.store import Store, open_store
from typer.testing import CliRunner

from emocap_pretrain.cli import restart as restarting
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder import requests
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import ENDED, Failure, Status


@pytest.fixture
def recipe(tiny_config: Config, tmp_path: Path) -> str:
    file = tmp_path / "cfg.yaml"
    file.write_text(yaml.safe_dump(tiny_config.stored()), encoding="utf-8")
    return str(file)


def restart(*words: str):
    return CliRunner().invoke(app, ["restart", *words])


def test_a_command_is_run_again_as_often_as_the_config_of_its_run_allows(recipe: str, tmp_path: Path) -> None:
    script = f"echo >> {tmp_path}/starts; exit 3"
    done = restart("--", "bash", "-c", script, "-", recipe, "cluster.max_restarts=1")
    assert done.exit_code == 3
    assert (tmp_path / "starts").read_text() == "\n\n"
    assert (
        done.stderr
        == "error: the job failed: Exit: the command ended with code 3 (2 failures in a row without a new checkpoint)\n"
    )


def test_the_option_wins_over_the_config(recipe: str, tmp_path: Path) -> None:
    done = restart("--max-restarts", "0", "--", "bash", "-c", f"echo >> {tmp_path}/starts; exit 3", "-", recipe)
    assert done.exit_code == 3
    assert (tmp_path / "starts").read_text() == "\n"


def test_the_cause_comes_from_the_folder_of_the_run(recipe: str, tiny_config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    Attempt.begin(open_store(folder)).record_failure(
        Failure(1, "b", 7, "ConfigError", "steps=0 is too few.", final=True)
    )
    copy = f"mkdir -p {tiny_config.url}; cp -r {folder}/* {tiny_config.url}; exit 1"
    done = restart("--", "bash", "-c", copy, "-", recipe)
    assert done.exit_code == 1
    assert done.stderr == "error: rank 1 on b failed at step 7: ConfigError: steps=0 is too few.\n"


def test_a_stop_reaches_ranks_on_other_hosts_through_the_folder_and_is_then_deleted(
    recipe: str, tiny_config: Config, tmp_path: Path
) -> None:
    request = Path(tiny_config.url) / requests.STOP

    def tell() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    wait = f"touch {tmp_path}/ready; while [ ! -e {request} ]; do sleep 0.1; done"
    done = restart("--", "bash", "-c", wait, "-", recipe)
    assert done.exit_code == 75
    assert not request.exists()


def test_without_a_config_the_run_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = restart("--", "true")
    assert done.exit_code == 2
    assert "--run URL" in done.stderr
    assert restart("--run", str(tmp_path / "run"), "--", "true").exit_code == 75


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("ray job submit -- python -m x", "http://127.0.0.1:8265"),
        (
            "/abs/bin/ray job submit --address http://10.0.0.1:8265 -- python --address http://other",
            "http://10.0.0.1:8265",
        ),
        ("ray job submit --address=https://head -- python -m x", "https://head"),
        ("ray job submit --address auto -- python -m x", None),
        ("torchrun --nnodes 2 x.py", None),
    ],
)
def test_only_a_job_that_is_submitted_over_http_has_an_address_of_a_head(
    words: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    found = restarting.head_of(words.split())
    assert (found and found.geturl()) == address


def test_a_head_that_refuses_a_request_is_reachable_and_a_silent_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restarting, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = urlsplit(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not restarting.answers(url)

        def refuse() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        assert restarting.answers(url) or restarting.answers(url)
    assert not restarting.answers(url)


@pytest.mark.parametrize(
    ("words", "joins"),
    [
        ("torchrun --nnodes 3 --node-rank 1 --master-addr a cfg.yaml", True),
        ("/venv/bin/torchrun --nnodes=3 --node_rank=2 -m emocap_pretrain.run cfg.yaml steps=0", True),
        ("python -m torch.distributed.run --nnodes 2 --node_rank 1 launch/pretrain.py", True),
        ("torchrun --nnodes 3 --node-rank 0 --master-addr a cfg.yaml", False),
        ("torchrun --nproc-per-node 8 -m emocap_pretrain.run cfg.yaml", False),
        ("deepspeed --num_nodes 4 --node_rank 1 launch/pretrain.py cfg.yaml", False),
        ("true", False),
    ],
)
def test_a_torchrun_that_is_not_that_of_the_first_node_is_recognized(words: str, joins: bool) -> None:
    assert restarting.joins_another_torchrun(words.split()) is joins


def test_the_torchrun_of_another_node_waits_until_the_attempt_has_ended(
    recipe: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own rank was killed, and the ranks of other hosts have not noticed it yet."""
    monkeypatch.setattr(relaunching, "CHECK_S", 0.05)
    monkeypatch.setattr(restarting, "TORCHRUN_ENDS_S", 0.0)
    alive = iter([True, True, False])
    monkeypatch.setattr(restarting, "lives", lambda _store: next(alive, False))
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f"#!/bin/sh\necho >> {tmp_path}/starts; exit 3\n")
    torchrun.chmod(0o700)
    done = restart("--max-restarts", "0", "--", str(torchrun), "--nnodes", "2", "--node-rank", "1", recipe)
    assert done.exit_code == 3
    assert list(alive) == [], "it asks until the attempt has ended"


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_the_clock_of_the_host_of_a_living_attempt_does_not_change_how_long_restart_waits(
    recipe: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    monkeypatch.setattr(relaunching, "CHECK_S", 0.05)
    monkeypatch.setattr(restarting, "TORCHRUN_ENDS_S", 0.0)
    attempt = Attempt.begin(open_store(tiny_config.url))
    attempt.write_status(Status(at=time.time() + ahead_s, state="training", step=7))
    seen: list[bool] = []

    def lives(store: Store) -> bool:
        seen.append(judged(store))
        if len(seen) == 2:
            attempt.write_status(Status(at=time.time() + ahead_s, state=ENDED, how="failed", step=7))
        return seen[-1]

    judged = restarting.lives
    monkeypatch.setattr(restarting, "lives", lives)
    torchrun = tmp_path / "torchrun"
    torchrun.write_text("#!/bin/sh\nexit 3\n")
    torchrun.chmod(0o700)
    done = restart("--max-restarts", "0", "--", str(torchrun), "--nnodes", "2", "--node-rank", "1", recipe)
    assert done.exit_code == 3
    assert seen == [True, True, False]
