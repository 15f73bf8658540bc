import json
import os
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from emocap_cluster.errors import NoCluster
from emocap_cluster.ranks import Resources, connected, on_every_rank
from emocap_cluster.runtime import RayRuntime

slow = pytest.mark.slow
SCRIPT = Path(__file__).with_name("rank_script.py")


@dataclass(frozen=True)
class Told:
    """What the script said of each job, and what its ranks wrote."""

    jobs: dict[str, dict[str, Any]]
    ranks: dict[str, list[Any]]


def told(folder: Path) -> Told:
    # Short, because Ray puts sockets below it; and its own, so that no other cluster of this machine is joined.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"RAY_TMPDIR": place, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        command = [sys.executable, str(SCRIPT), str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=env)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert lines, done.stderr[-3000:]
    return Told(
        {line.pop("name"): line for line in lines},
        {path.name: json.loads(path.read_text()) for path in folder.iterdir()},
    )


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told(tmp_path_factory.mktemp("ranks"))


@slow
def test_ranks_are_numbered_from_0_and_meet_in_one_process_group(on_ray: Told) -> None:
    assert on_ray.jobs["sees"] == {}
    assert on_ray.ranks == {str(rank): [rank, 2, rank, 2, "cpu", "hello", [0, 10], False] for rank in range(2)}


@slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_arrives_with_its_number_message_and_kind(on_ray: Told, rank: int) -> None:
    assert on_ray.jobs[f"fails on {rank}"] == {
        "kind": "RankFailed",
        "message": f"rank {rank} failed: the data ran out",
        "cause": "ClusterError",
        "why": "the data ran out",
    }


@slow
def test_a_rank_whose_process_is_gone_is_a_failure_and_not_a_wait(on_ray: Told) -> None:
    assert on_ray.jobs["dies"]["kind"] == "RankFailed"


def test_too_few_gpus_are_told_with_both_numbers_before_anything_starts() -> None:
    def never(_: RayRuntime) -> None:
        raise AssertionError

    with pytest.raises(NoCluster, match=r"4 ranks need 4 GPUs and the cluster has 2; set cluster\.ranks"):
        on_every_rank(never, ranks=4, on_gpu=True, resources=Resources(cpus=8, gpus=2), timeout_s=60)


def test_an_address_where_nobody_answers_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(NoCluster, match=r"RAY_ADDRESS=127\.0\.0\.1:9"), connected({}):
        pytest.fail("there is no cluster at the discard port")
