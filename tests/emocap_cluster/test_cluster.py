import socket
from pathlib import Path

import pytest
from emocap_cluster.cluster import _local_instead_of_dead  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray writes down which cluster runs on this host."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_a_host_without_a_cluster_leaves_the_choice_to_ray(remembered: Path) -> None:
    assert not remembered.exists()
    assert _local_instead_of_dead() is None


def test_a_cluster_that_answers_is_joined_and_one_that_is_gone_is_not_waited_for(remembered: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        remembered.write_text(f"127.0.0.1:{server.getsockname()[1]}\n")
        assert _local_instead_of_dead() is None
    assert _local_instead_of_dead() == "local"
    assert not remembered.exists()


def test_an_address_that_a_person_gives_counts_alone(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered.write_text("127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert _local_instead_of_dead() is None
