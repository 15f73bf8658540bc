import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from emocap_cluster.address import HERE, address_of_ray
from emocap_cluster.errors import NoCluster

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
NOBODY = 65534


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the file in which Ray records the cluster of this host."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@contextmanager
def a_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[str]:
    with a_server() as address:
        yield address


def test_a_job_on_a_host_without_a_cluster_starts_one(remembered: Path) -> None:
    assert not remembered.exists()
    assert address_of_ray() == HERE


def test_a_cluster_that_answers_is_joined(remembered: Path, answering: str) -> None:
    remembered.write_text(f"{answering}\n")
    assert address_of_ray() == answering


def test_one_that_is_gone_is_not_waited_for(remembered: Path) -> None:
    remembered.write_text("127.0.0.1:9")
    assert address_of_ray() == HERE
    assert not remembered.exists()


@needs_root
@pytest.mark.parametrize("foreign", ["file", "folder"])
def test_an_address_that_another_user_has_left_is_not_believed(remembered: Path, answering: str, foreign: str) -> None:
    remembered.write_text(answering)
    os.chown(remembered if foreign == "file" else remembered.parent, NOBODY, NOBODY)
    assert address_of_ray() == HERE
    assert remembered.exists()


def test_a_link_or_a_pipe_in_place_of_the_address_is_not_followed_or_waited_for(
    remembered: Path, answering: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text(answering)
    remembered.symlink_to(tmp_path / "elsewhere")
    assert address_of_ray() == HERE
    remembered.unlink()
    os.mkfifo(remembered)
    assert address_of_ray() == HERE


def test_an_address_that_a_person_gives_counts_alone(
    remembered: Path, answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered.write_text(answering)
    with a_server() as other:
        monkeypatch.setenv("RAY_ADDRESS", other)
        assert address_of_ray() == other
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address_of_ray() == answering


def test_auto_without_a_cluster_of_this_user_is_one_line(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(NoCluster, match="HOST:PORT"):
        address_of_ray()


def test_an_address_where_nobody_answers_is_one_line(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not remembered.exists()
    with a_server() as gone:
        monkeypatch.setenv("RAY_ADDRESS", gone)
    with pytest.raises(NoCluster, match="there is no answer at RAY_ADDRESS"):
        address_of_ray()


def test_the_address_is_found_without_importing_ray() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, emocap_cluster.address; print('ray' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "False"
