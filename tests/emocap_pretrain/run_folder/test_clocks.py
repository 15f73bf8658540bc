"""Tests that the clocks of the run's host, of the host that reads its folder, and of the store may differ by hours."""

import json
import time
from pathlib import Path

import pytest
from emocap_shards.store import Store, open_store
from typer.testing import CliRunner, Result

from emocap_pretrain.cli.app import app
from emocap_pretrain.cli.restart import lives
from emocap_pretrain.run_folder import requests, state
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Status
from emocap_pretrain.run_folder.state import RunState

TWO_HOURS = 7200.0


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "run")
    url: str = request.getfixturevalue("s3")
    return open_store(url)


def emocap(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def live(store: Store, ahead_s: float) -> None:
    """Writes the status of an attempt that trains on a host whose clock is `ahead_s` ahead of this host's clock."""
    Attempt.begin(store).write_status(Status(at=time.time() + ahead_s, state="training", step=7))


@pytest.mark.parametrize("ahead_s", [-TWO_HOURS, TWO_HOURS])
def test_a_run_on_a_host_with_a_wrong_clock_is_alive(store: Store, ahead_s: float) -> None:
    live(store, ahead_s)
    printed = json.loads(emocap("status", store.url, "--json").output)
    assert printed["alive"]
    assert abs(printed["clock_skew_s"] - ahead_s) < 60
    shown = " ".join(emocap("status", store.url).output.split())
    assert "the clock of the run's host is" in shown
    assert (" fast compared" if ahead_s > 0 else " slow compared") in shown
    assert emocap("stop", store.url, "--no-wait").exit_code == 0
    assert store.exists(requests.STOP)
    pruned = emocap("checkpoints", "prune", store.url, "--keep-last", "1")
    assert pruned.exit_code == 2
    assert "attempt 1 of the run" in pruned.stderr
    assert lives(store)


@pytest.mark.parametrize("ahead_s", [-TWO_HOURS, TWO_HOURS])
def test_a_run_without_a_new_status_is_dead_whatever_its_clock_says(
    store: Store, ahead_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "DEAD_S", 2.0)
    live(store, ahead_s)
    end_s = time.monotonic() + 30
    while RunState.read(store).newest.alive:
        assert time.monotonic() < end_s
        time.sleep(0.1)
    assert emocap("stop", store.url, "--no-wait").exit_code == 2
    assert emocap("checkpoints", "prune", store.url, "--keep-last", "1").exit_code == 0
    assert not lives(store)


def test_a_request_from_a_host_with_a_wrong_clock_is_read(store: Store) -> None:
    for ahead_s in (-TWO_HOURS, TWO_HOURS):
        store.put(requests.STOP, json.dumps({"at": time.time() + ahead_s}).encode())
        assert requests.pending(store).stop


def test_a_store_without_ages_has_its_status_watched_for_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "run")
    monkeypatch.setattr(type(store), "age_s", lambda *_: None)
    monkeypatch.setattr(state, "DEAD_S", 0.5)
    monkeypatch.setattr(state, "POLL_S", 0.05)
    live(store, TWO_HOURS)
    assert not RunState.read(store).newest.alive

    class Beating(type(store)):
        __slots__ = ()
        steps = iter(range(8, 100))

        def read(self, path: str, **options: int) -> bytes:
            if path.endswith("status.json"):
                Attempt(store, 1).write_status(Status(at=1.0, state="training", step=next(self.steps)))
            return super().read(path, **options)

    assert RunState.read(Beating(store.url)).newest.alive
