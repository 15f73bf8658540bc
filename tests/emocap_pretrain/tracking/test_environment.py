import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from emocap_pretrain.tracking import environment


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a repository with one commit, which the module under test takes for its own checkout."""
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    return tmp_path


def test_the_commit_of_a_clean_checkout_is_its_hash(checkout: Path) -> None:
    assert environment.git_commit() == git(checkout, "rev-parse", "HEAD")


def test_changed_files_mark_a_checkout_as_dirty_and_new_files_do_not(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("new")
    assert not environment.git_commit().endswith("-dirty")
    (checkout / "code.py").write_text("x = 2\n")
    assert environment.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_there_is_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit() == ""


def test_there_is_no_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.git_commit() == ""


def test_versions_are_of_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    assert environment.versions()["torch"] == version("torch")
    assert environment.versions()["no-such-package"] == "not installed"
    assert environment.versions()["python"].startswith("3.")


def test_the_machine_is_described_by_texts() -> None:
    facts = environment.machine()
    assert set(facts) == {"host", "platform", "cpu_cores", "memory_gib", "cuda_devices"}
    assert int(facts["cpu_cores"]) >= 1
    assert float(facts["memory_gib"]) > 0


def test_environment_variables_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-value")
    assert "a-secret-value" not in str(environment.machine() | environment.versions())
