"""Tests how a cluster is divided among workers, and a real Ray cluster whose workers die or raise errors."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from emocap_cluster.errors import NoCluster
from emocap_cluster.mapping import WorkerResources
from emocap_cluster.placement import Node

SCRIPT = Path(__file__).with_name("mapping_script.py")


def node(cpus: int, gpus: int = 0, *, alive: bool = True, draining: bool = False) -> Node:
    return Node(id="n", address="a", cpus=cpus, gpus=gpus, alive=alive, draining=draining)


@pytest.mark.parametrize(
    ("nodes", "workers", "use_gpus", "expected"),
    [
        ([node(16, 4), node(16, 4)], None, True, WorkerResources(8, 1, 1)),
        ([node(16, 4), node(16)], 2, True, WorkerResources(2, 1, 1)),
        ([node(16, 4)], None, False, WorkerResources(4, 4, 0)),
        ([node(16), node(6)], None, True, WorkerResources(5, 4, 0)),
        ([node(2)], None, True, WorkerResources(1, 2, 0)),
        ([node(2)], 2, True, WorkerResources(2, 1, 0)),
        ([node(16)], 3, True, WorkerResources(3, 5, 0)),
        ([node(0), node(8)], 1, True, WorkerResources(1, 8, 0)),
        ([node(8), node(8, alive=False), node(8, 8, draining=True)], None, True, WorkerResources(2, 4, 0)),
    ],
)
def test_the_devices_of_the_cluster_are_divided_among_the_workers(nodes, workers, use_gpus, expected):
    assert WorkerResources.of(nodes, workers=workers, use_gpus=use_gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "message"),
    [
        ([node(8, 2)], 3, "2 GPUs for 3 workers"),
        ([node(2)], 3, "2 cores for 3 workers"),
        ([node(0)], None, "0 cores for 1 workers"),
    ],
)
def test_more_workers_than_devices_are_refused(nodes, workers, message):
    with pytest.raises(NoCluster, match=message):
        WorkerResources.of(nodes, workers=workers, use_gpus=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder, home = tmp_path_factory.mktemp("mapping"), tmp_path_factory.mktemp("home")
    # The path is short, because Ray creates sockets in it.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_"))}
        env |= {"RAY_TMPDIR": place, "HOME": str(home)}
        command = [sys.executable, str(SCRIPT), str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, env=env)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert done.returncode == 0, done.stderr[-3000:]
    return {line.pop("name"): line for line in lines}


@pytest.mark.slow
def test_every_item_has_one_result_although_a_worker_is_killed(told):
    found = told["all"]["found"]
    assert [item for item, _, _ in found] == list(range(12))
    assert {secret for _, secret, _ in found} == {"hidden"}
    assert told["none"]["found"] == []


@pytest.mark.slow
def test_an_error_of_the_function_or_of_its_start_is_raised_with_its_own_message(told):
    assert told["wrong item"] == {"said": "99 is wrong", "cause": "ValueError"}
    assert told["no start"] == {"said": "there is no model", "cause": "LookupError"}
