import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from emocap_shards.store import Store, open_store
from pretrain_fakes import aged
from typer.testing import CliRunner, Result

from emocap_pretrain.cli import requests as requesting
from emocap_pretrain.cli import status
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.health.profiler import trace_path
from emocap_pretrain.run_folder import requests
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import Failure
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.parent import Parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


@pytest.fixture(autouse=True)
def narrow_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(requesting, "EVERY_S", 0.02)


def emocap(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def put(store: Store, number: int, **facts: object) -> None:
    told = {"name": "tiny", "state": "training", "step": 120, "steps": 1000, "at": time.time(), "ranks": 3}
    store.put(f"attempts/{number:05d}/status.json", json.dumps(told | facts).encode())


def two_starts(store: Store) -> None:
    first = Attempt.begin(store, ranks=4)
    put(store, 1, state="ended", how="failed", reason="rank 3 is gone", step=57)
    first.record_failure(
        Failure(3, "node2", 57, "OutOfMemoryError", "CUDA out of memory. " + "Tried to allocate much. " * 30)
    )
    Attempt.begin(store, ranks=3)
    slowest = {"rank": 2, "host": "node2", "section": "data", "factor": 1.62}
    facts = {"loss": 1.23456, "samples_per_s": 5123.4, "eta_s": 3725, "hosts": ["node1", "node2"], "checkpoint": 100}
    put(store, 2, **facts, slowest=slowest, restarts=1)


def test_the_status_names_the_checkpoint_whose_weights_a_run_began_with(store: Store, tiny_config: Config) -> None:
    two_starts(store)
    assert json.loads(emocap("status", store.url, "--json").stdout)["warm_start"] == {}
    RunFolder(store).write_run(tiny_config, "abc", warm_start=Parent("s3://bucket/faces", 1200, "def", "0123"))
    assert re.search(r"started from\W+step 1,200 of s3://bucket/faces", emocap("status", store.url).stdout)
    found = json.loads(emocap("status", store.url, "--json").stdout)["warm_start"]
    assert found == {"url": "s3://bucket/faces", "step": 1200, "run_id": "def", "digest": "0123"}


def test_the_status_of_a_run_fits_into_80_columns(store: Store) -> None:
    two_starts(store)
    done = emocap("status", store.url)
    assert done.exit_code == 0
    for words in (
        "training",
        "120 of 1,000",
        "1.2346",
        "5,123",
        "1:02:05",
        "3 on 2 hosts",
        "step 100",
        "2 (node2), 1.62 times the median, mostly data",
        "rank 3 (node2): OutOfMemoryError",
        "runs",
    ):
        assert words in done.output, words
    # Attempts that a user has started count too, so they are not called restarts.
    assert re.search(r"earlier attempts\W+1\W", done.output)
    assert max(map(len, done.output.splitlines())) <= 80


def test_a_run_without_a_recent_status_is_shown_as_silent(store: Store) -> None:
    Attempt.begin(store, ranks=3)
    put(store, 1)
    aged(store, "attempts/00001/status.json", 34)
    assert "no status for 34 s, before that training" in " ".join(emocap("status", store.url).output.split())


def test_json_has_everything(store: Store) -> None:
    two_starts(store)
    told = json.loads(emocap("status", store.url, "--json").output)
    assert told["alive"]
    assert told["status"]["loss"] == 1.23456
    assert [each["number"] for each in told["attempts"]] == [1, 2]
    assert told["attempts"][0]["ended"].startswith("rank 3 (node2): OutOfMemoryError")


def test_watching_continues_over_a_restart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "EVERY_S", 0.02)
    Attempt.begin(store, ranks=3)
    put(store, 1, state="ended", how="failed", step=57, reason="rank 2 is gone")

    def again() -> None:
        time.sleep(0.2)
        Attempt.begin(store, ranks=2)
        put(store, 2, state="ended", how="done", step=1000, reason="")

    thread = beside(again)
    assert "1,000 of 1,000" in emocap("status", store.url, "--watch").output
    thread.join(20)


def test_watching_ends_with_the_run(store: Store) -> None:
    Attempt.begin(store, ranks=3)
    put(store, 1, state="ended", how="done", step=1000, reason="")
    assert "1,000 of 1,000" in emocap("status", store.url, "--watch").output


@pytest.mark.parametrize("command", ["status", "stop", "profile"])
def test_a_folder_without_a_run_is_a_value_to_correct(store: Store, command: str) -> None:
    done = emocap(command, store.url)
    assert done.exit_code == 2
    assert "no run was ever started at" in done.output


@pytest.mark.parametrize("command", ["stop", "profile"])
def test_no_request_is_written_to_a_run_that_has_ended(store: Store, command: str) -> None:
    Attempt.begin(store)
    put(store, 1, state="ended", how="done", reason="")
    done = emocap(command, store.url)
    assert done.exit_code == 2
    assert "nothing runs at" in done.output
    assert store.list("requests") == []


def beside(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def wait_for(store: Store, path: str) -> None:
    end_s = time.monotonic() + 20
    while not store.exists(path):
        assert time.monotonic() < end_s
        time.sleep(0.02)


def profile_asked_for(store: Store) -> requests.Requests:
    end_s = time.monotonic() + 20
    while not (asked := requests.pending(store)).profile:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return asked


@pytest.mark.parametrize(("how", "code"), [("stopped", 0), ("failed", 1)])
def test_stop_waits_and_prints_how_the_run_ended(store: Store, how: str, code: int) -> None:
    Attempt.begin(store)
    put(store, 1)

    def run() -> None:
        wait_for(store, requests.STOP)
        put(store, 1, state="ended", how=how, reason="asked to", step=130)

    thread = beside(run)
    done = emocap("stop", store.url)
    thread.join(20)
    assert done.exit_code == code
    assert f"Step 130: {how}: asked to" in done.output


def test_profile_waits_for_every_trace_and_prints_their_paths(store: Store) -> None:
    Attempt.begin(store)
    put(store, 1)
    traces = [trace_path(121, rank) for rank in range(2)]

    def run() -> None:
        asked = profile_asked_for(store)
        assert asked.profile
        assert (asked.profile.steps, asked.profile.ranks) == (3, (0, 1))
        requests.mark_served(store, asked)
        body = {"steps": [121, 123], "traces": traces}
        store.put(f"profiles/{asked.profile.id}.json", json.dumps(body).encode())
        for trace in traces:
            time.sleep(0.1)
            store.put(trace, b"")

    thread = beside(run)
    done = emocap("profile", store.url, "--steps", "3", "--ranks", "1,0")
    thread.join(20)
    assert done.exit_code == 0
    assert "Steps 121 to 123" in done.output
    assert all(f"{store.url}/{trace}" in done.output for trace in traces)


def test_profile_deletes_a_request_that_was_not_served(store: Store) -> None:
    Attempt.begin(store)
    put(store, 1)

    def run() -> None:
        profile_asked_for(store)
        put(store, 1, state="ended", how="done", reason="")

    thread = beside(run)
    done = emocap("profile", store.url)
    thread.join(20)
    assert done.exit_code == 1
    assert "the run has ended before attempt" in done.output
    assert store.list("requests") == []


def answered(store: Store, answer: dict[str, object]) -> Result:
    """Returns the output of `emocap profile` for a run at step 120 that gives this answer."""
    Attempt.begin(store)
    put(store, 1)

    def run() -> None:
        asked = profile_asked_for(store)
        assert asked.profile
        store.put(f"profiles/{asked.profile.id}.json", json.dumps(answer).encode())

    thread = beside(run)
    done = emocap("profile", store.url)
    thread.join(20)
    return done


def test_a_profile_that_is_refused_is_an_error(store: Store) -> None:
    done = answered(store, {"refused": "steps 118 to 130 are being recorded"})
    assert done.exit_code == 1
    assert "no profile: steps 118 to 130 are being recorded" in done.output


def test_a_trace_that_never_comes_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requesting, "UPLOAD_S", 0.2)
    done = answered(store, {"steps": [118, 120], "traces": [trace_path(118, 0)]})
    assert done.exit_code == 1
    assert f"{trace_path(118, 0)} was not uploaded within 0.2 s" in " ".join(done.output.split())


@pytest.mark.parametrize("ranks", ["first", "-1", "0,-2", ""])
def test_ranks_that_are_not_numbers_are_an_error(store: Store, ranks: str) -> None:
    done = emocap("profile", store.url, "--ranks", ranks)
    assert done.exit_code == 2
    assert f"--ranks {ranks}: give all, or numbers such as 0,3" in done.output


def test_looking_at_a_run_does_not_import_torch() -> None:
    code = "import sys, emocap_pretrain.cli.status, emocap_pretrain.cli.requests; "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0
