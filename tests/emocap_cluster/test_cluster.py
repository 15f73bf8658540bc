import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from emocap_cluster.cluster import _address  # pyright: ignore[reportPrivateUsage]
from emocap_cluster.errors import NoCluster

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
NOBODY = 65534


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray writes down which cluster runs on this host."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def answering() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_job_on_a_host_without_a_cluster_starts_one(remembered: Path) -> None:
    assert not remembered.exists()
    assert _address() == "local"


def test_a_cluster_that_answers_is_joined(remembered: Path, answering: str) -> None:
    remembered.write_text(f"{answering}\n")
    assert _address() == answering


def test_one_that_is_gone_is_not_waited_for(remembered: Path) -> None:
    remembered.write_text("127.0.0.1:9")
    assert _address() == "local"
    assert not remembered.exists()


@needs_root
@pytest.mark.parametrize("foreign", ["file", "folder"])
def test_an_address_that_another_user_has_left_is_not_believed(remembered: Path, answering: str, foreign: str) -> None:
    remembered.write_text(answering)
    os.chown(remembered if foreign == "file" else remembered.parent, NOBODY, NOBODY)
    assert _address() == "local"
    assert remembered.exists()


def test_a_link_or_a_pipe_in_place_of_the_address_is_not_followed_or_waited_for(
    remembered: Path, answering: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text(answering)
    remembered.symlink_to(tmp_path / "elsewhere")
    assert _address() == "local"
    remembered.unlink()
    os.mkfifo(remembered)
    assert _address() == "local"


def test_an_address_that_a_person_gives_counts_alone(
    remembered: Path, answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered.write_text(answering)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert _address() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert _address() == answering


def test_auto_without_a_cluster_of_this_user_is_one_line(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(NoCluster, match="HOST:PORT"):
        _address()
