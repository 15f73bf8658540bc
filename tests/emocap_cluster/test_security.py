"""Tests the files of Ray that other users of a host could read, replace, or create first."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emocap_cluster.errors import NoCluster
from emocap_cluster.security import check_token, make_token, on_loopback, private_folder
from ray._private import ray_constants, services

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
NOBODY = 65534


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_this_user_alone_and_kept(home: Path) -> None:
    before = os.umask(0)
    try:
        make_token()
    finally:
        os.umask(before)
    file = home / ".ray" / "auth_token"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    token = file.read_text()
    assert len(token) == 64
    make_token()
    check_token()
    assert file.read_text() == token
    assert [each.name for each in file.parent.iterdir()] == ["auth_token"]


def test_jobs_that_make_the_token_at_the_same_moment_have_the_same(home: Path) -> None:
    file = home / ".ray" / "auth_token"

    def seen(_number: int) -> str:
        make_token()
        return file.read_text()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(seen, range(8)))) == 1


def test_a_token_is_made_where_the_user_wants_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mine" / "token"))
    make_token()
    assert mode(home / "mine" / "token") == 0o600
    assert not (home / ".ray").exists()


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "0" * 64), ("RAY_AUTH_MODE", "disabled")])
def test_no_file_is_made_or_looked_at_where_none_is_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    make_token()
    assert not (home / ".ray").exists()
    written(home, 0o644)
    check_token()


def written(home: Path, permissions: int) -> Path:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o700)
    file.write_text("0" * 64)
    file.chmod(permissions)
    return file


@pytest.mark.parametrize("permissions", [0o644, 0o640, 0o604])
def test_a_token_that_others_can_read_is_refused_with_the_command_that_cures_it(home: Path, permissions: int) -> None:
    file = written(home, permissions)
    with pytest.raises(NoCluster, match=f"chmod 600 {file}"):
        check_token()
    file.chmod(0o600)
    check_token()


def test_a_token_that_others_can_replace_is_refused(home: Path) -> None:
    file = written(home, 0o600)
    file.parent.chmod(0o777)
    with pytest.raises(NoCluster, match=f"chmod 700 {file.parent}"):
        check_token()


@needs_root
def test_a_token_of_another_user_is_refused(home: Path) -> None:
    os.chown(written(home, 0o600), NOBODY, NOBODY)
    with pytest.raises(NoCluster, match="other users can read"):
        check_token()


def test_a_pipe_in_place_of_the_token_is_refused_and_not_waited_for(home: Path) -> None:
    (home / ".ray").mkdir()
    os.mkfifo(home / ".ray" / "auth_token", 0o600)
    with pytest.raises(NoCluster, match="regular file"):
        check_token()


def test_a_home_that_cannot_be_written_is_one_line(home: Path) -> None:
    (home / ".ray").write_text("a file, where a folder is needed")
    with pytest.raises(NoCluster, match="set RAY_AUTH_TOKEN_PATH"):
        make_token()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the parent of this user's folder, which others may write to."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path / f"emocap-{os.geteuid()}"


def test_the_folder_of_the_sockets_is_this_user_s_alone(shared: Path) -> None:
    assert private_folder() == shared == private_folder()
    assert mode(shared) == 0o700


def test_a_folder_of_the_sockets_that_others_can_open_is_refused(shared: Path) -> None:
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(NoCluster, match="mode 700"):
        private_folder()


def test_a_link_in_place_of_the_folder_of_the_sockets_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    shared.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoCluster, match="mode 700"):
        private_folder()


@needs_root
def test_a_folder_of_the_sockets_that_another_user_has_made_is_refused(shared: Path) -> None:
    shared.mkdir(mode=0o700)
    os.chown(shared, NOBODY, NOBODY)
    with pytest.raises(NoCluster, match="belongs to this user"):
        private_folder()


def test_ray_keeps_the_loopback_address_inside_the_block_only() -> None:
    with on_loopback():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
        assert services.get_node_ip_address() == "127.0.0.1"
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert ray_constants.ENABLE_RAY_CLUSTER
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
