"""Tests jobs on a real Ray whose ranks die, raise errors, grow in number, and are removed."""

import ipaddress
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from emocap_cluster.cluster import connected
from emocap_cluster.errors import NoCluster

slow = pytest.mark.slow
SCRIPT = Path(__file__).with_name("rank_script.py")


@dataclass(frozen=True)
class Told:
    """The script's lines about each job, the output of the ranks, and the folder of their files."""

    jobs: dict[str, dict[str, Any]]
    printed: str
    folder: Path


def told(folder: Path, *arguments: str, **more: str) -> Told:
    # The path is short, because Ray creates sockets in it. No other cluster of this machine uses the folder.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"RAY_TMPDIR": place, **more}
        command = [sys.executable, str(SCRIPT), str(folder), *arguments]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1500, env=env)
            left = left_running(place)
        finally:
            for each in processes_of(place):
                each.kill()
    assert left == []
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert lines, done.stderr[-3000:]
    return Told({line.pop("name"): line for line in lines}, done.stdout + done.stderr, folder)


def processes_of(place: str) -> list[psutil.Process]:
    """Returns all processes that use this folder as the folder of Ray, also if their parents have ended."""
    found: list[psutil.Process] = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get("RAY_TMPDIR") == place and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def left_running(place: str) -> list[str]:
    """Returns the processes of a cluster that still run half a minute after their job has ended."""
    deadline = time.monotonic() + 30.0
    while (found := processes_of(place)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [str(each) for each in found]


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    return told(tmp_path_factory.mktemp("one"), HOME=str(home))


@slow
@pytest.mark.timeout(1600)
def test_ranks_are_numbered_meet_in_one_process_group_and_have_their_environment(one_node: Told) -> None:
    assert one_node.jobs["sees"]["attempts"] == [[2, "done", ""]]
    for rank in range(2):
        seen = json.loads((one_node.folder / "sees" / str(rank)).read_text())
        assert seen == [rank, 2, rank, 2, "cpu", "hello", "hidden", [0, 10], False]


@slow
def test_the_driver_hears_how_far_rank_0_is_and_lines_carry_their_rank(one_node: Told) -> None:
    assert one_node.jobs["sees"]["beats"] == [[5, 5, "loss 1.0"]]
    assert "\n[rank 0] I am 0\n" in one_node.printed or "\n[rank 1] I am 1\n" in one_node.printed
    assert "hidden" not in one_node.printed


@slow
def test_a_cluster_of_the_job_s_own_listens_on_loopback_alone(one_node: Told) -> None:
    seen = one_node.jobs["listeners"]["seen"]
    assert {"gcs_server", "raylet", "ray::RayTrainWorker"} <= {name for name, _ in seen}
    assert [[name, address] for name, address in seen if not is_loopback(address)] == []


def is_loopback(address: str) -> bool:
    at = ipaddress.ip_address(address)
    return (getattr(at, "ipv4_mapped", None) or at).is_loopback


@slow
def test_only_this_user_can_read_the_token_and_open_the_sockets_of_such_a_cluster(one_node: Told) -> None:
    files = one_node.jobs["files"]
    assert files["token"] == "600"
    assert files["token folder"] == "700"
    assert files["sockets"] == "700"


@slow
def test_a_rank_that_is_killed_is_named_and_the_job_continues(one_node: Told) -> None:
    job = one_node.jobs["killed"]
    assert [each[:2] for each in job["attempts"]] == [[2, "failed"], [2, "done"]]
    assert "rank 1" in job["attempts"][0][2]
    assert "Killed" in job["attempts"][0][2]
    assert "Starting again now, from the beginning." in job["said"][0]


@slow
def test_a_rank_that_is_killed_while_it_is_started_costs_one_attempt_and_its_devices_are_free(one_node: Told) -> None:
    job = one_node.jobs["starting"]
    assert [each[:2] for each in job["attempts"]] == [[2, "failed"], [2, "done"]]
    assert "a rank ended while Ray started it: its process ended without an error: by SIGKILL" in job["attempts"][0][2]
    assert nothing_is_left(one_node.jobs["after starting"])


@slow
def test_the_devices_of_a_controller_that_is_killed_are_free_for_the_next_attempt_within_30_s(one_node: Told) -> None:
    job = one_node.jobs["controller"]
    assert [each[:2] for each in job["attempts"]] == [[2, "failed"], [2, "done"]]
    assert "Ray Train's controller has ended" in job["attempts"][0][2]
    assert nothing_is_left(one_node.jobs["after controller"])


@slow
def test_a_job_whose_own_ray_ends_says_so_and_ends(one_node: Told) -> None:
    job = one_node.jobs["raylet"]
    assert job["kind"] == "NoCluster"
    assert job["message"] == "the job's own Ray has ended (no raylet): the same command resumes the run."


def nothing_is_left(seen: dict[str, Any]) -> bool:
    return seen["actors"] == [] and seen["free"] == seen["cpus"]


@slow
def test_a_bug_is_tried_twice_and_told_with_rank_step_kind_and_message(one_node: Told) -> None:
    job = one_node.jobs["bug"]
    assert job["kind"] == "RankFailed"
    assert job["message"].startswith("rank 1 failed at step 7: ValueError: bad (the same failure twice in a row")
    assert job["cause"] == "ValueError"


@slow
def test_a_final_error_is_not_tried_again_and_arrives_whole(one_node: Told) -> None:
    job = one_node.jobs["wrong"]
    assert job == {
        "kind": "RankFailed",
        "message": "rank 1 failed: ClusterError: the data ran out",
        "cause": "ClusterError",
    }


@slow
def test_sigterm_of_the_driver_lets_the_ranks_save_and_ends_the_job_as_stopped(one_node: Told) -> None:
    job = one_node.jobs["stopped"]
    assert job["how"] == "stopped"
    assert [each[1] for each in job["attempts"]] == ["stopped"]
    assert int((one_node.folder / "stopped" / "progress").read_text()) > 0


@slow
@pytest.mark.timeout(1600)
def test_a_job_grows_when_nodes_come_leaves_one_that_is_announced_to_go_and_survives_the_loss_of_another(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    job = told(tmp_path_factory.mktemp("many"), "nodes", **token).jobs["moves"]
    ends = [each[:2] for each in job["attempts"]]
    assert ends == [[2, "growing"], [3, "drained"], [2, "failed"], [2, "stopped"]]
    assert "A node will be removed soon: the ranks save and continue without it." in job["said"]


def test_an_address_where_nobody_answers_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(NoCluster, match=r"RAY_ADDRESS=127\.0\.0\.1:9"), connected({}):
        pytest.fail("there is no cluster at the discard port")
