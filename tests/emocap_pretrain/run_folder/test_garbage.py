"""Puts garbage into one file of a run's folder at a time; each command must succeed or print one line of error."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from emocap_shards.store import open_store
from pretrain_fakes import FakeRuntime, changed, finished
from typer.testing import CliRunner

from emocap_pretrain.cli import requests as requesting
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.run_folder import attempts, requests, state, storage, unsent
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import (
    PROFILE_ANSWER,
    QUARANTINE,
    Failure,
    ProfileAnswer,
    ProfileRequest,
    QuarantineDocument,
    QuarantinedSample,
    Status,
)
from emocap_pretrain.terminal import errors_as_lines
from emocap_pretrain.tracking.spool import row
from emocap_pretrain.training.guard import Guard
from emocap_pretrain.training.loop import pretrain

DOCUMENTS = (
    "run.json",
    "report.json",
    "skipped.json",
    "quarantine.json",
    "unsent.json",
    "attempts/N/attempt.json",
    "attempts/N/status.json",
    "attempts/N/failed-N.json",
    "requests/stop.json",
    "requests/profile-ab.json",
    "profiles/ab.json",
)
OF_CHECKPOINTS = (
    "checkpoints/step-N/manifest.json",
    "checkpoints/step-N/ATTEMPT/model.safetensors",
    "checkpoints/step-N/ATTEMPT/tokenizer.json",
    "checkpoints/step-N/ATTEMPT/unsent.json",
    "checkpoints/step-N/ATTEMPT/engine/FILE",
)
WRONG = {"at": [], "run_id": {}, "config": [3], "steps": "x", "rows": 7, "samples": [1], "step": -1, "number": "one"}


def _written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _replaced_by_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "file.json").write_bytes(b"{}")


def _replaced_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _copied(path: Path) -> None:
    """Copies a file, and its folder if the folder's name is a number, under a file manager's names for copies."""
    shutil.copy(path, path.with_name(f"{path.stem} (copy){path.suffix}"))
    if path.parent.name[-1].isdecimal():
        shutil.copytree(path.parent, path.parent.with_name(f"{path.parent.name} (copy)"))


GARBAGE: dict[str, Callable[[Path], object]] = {
    "empty": _written(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no fields": _written(b"{}"),
    "wrong types": _written(json.dumps(WRONG).encode()),
    "a list": _written(b'[null, {"schema": 1}]'),
    "not UTF-8": _written(b"\xff\xfe\x00"),
    "nested": _written(b'{"config": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "newer": _written(json.dumps({"schema": 99, "novel": True}).encode()),
    "a folder": _replaced_by_folder,
    "a pipe": _replaced_by_fifo,
    "a copy": _copied,
}


@pytest.fixture(scope="module")
def made(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Returns a finished run with every kind of document that a run can have, and a copy of its folder."""
    root = tmp_path_factory.mktemp("garbage")
    config = finished(changed(tiny(root), steps=2, evaluation__url=None, data__error_budget=5))
    store = open_store(config.url)
    Attempt(store, 1).record_failure(Failure(1, "host", 2, "ValueError", "no pixels"))
    Guard(config.health).remember(store, 9, "a spike")
    storage.write(
        store, "quarantine.json", QUARANTINE, QuarantineDocument((QuarantinedSample("a.tar", "1", "damaged"),))
    )
    unsent.write_or_warn(store, [row("metrics", 1, {"loss": 1.0})], number=1)
    requests.ask_to_stop(store)
    requests.ask_for_profile(store, ProfileRequest("ab", 1))
    storage.write(store, "profiles/ab.json", PROFILE_ANSWER, ProfileAnswer((1, 1), ("profiles/none.gz",)))
    kept = root / "kept"
    shutil.copytree(config.url, kept)
    return config, kept


@pytest.fixture
def run(made: tuple[Config, Path]) -> Config:
    """Restores the folder of the finished run from the copy."""
    config, kept = made
    shutil.rmtree(config.url)
    shutil.copytree(kept, config.url)
    return config


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "DEAD_S", 0.0)  # Every status counts as old, so no command waits for the run.
    monkeypatch.setattr(requesting, "EVERY_S", 0.01)


def kind_of(path: str) -> str:
    path = re.sub(r"/0\d+-[0-9a-f]{32}/", "/ATTEMPT/", path)
    path = re.sub(r"/engine/.*", "/engine/FILE", path)
    return re.sub(r"(?<=[/-])\d{5,}", "N", path)


def files(config: Config) -> dict[str, Path]:
    """Returns one path of every kind of file in the run's folder."""
    return {kind_of(entry.path): Path(config.url, entry.path) for entry in open_store(config.url).list()}


def test_every_kind_of_file_has_a_case(run: Config) -> None:
    assert files(run).keys() == {*DOCUMENTS, *OF_CHECKPOINTS}


def output_of(*words: str) -> str:
    """Runs a command and returns its output; asserts that there is no traceback and at most one line of error."""
    done = CliRunner().invoke(app, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), (words, repr(done.exception))
    assert done.exit_code in {0, 1, 2}
    assert done.stderr.count("error: ") <= 1
    if "error: " in done.stderr:
        assert len(done.stderr.partition("error: ")[2].strip().splitlines()) == 1, done.stderr
    return done.output


@pytest.mark.parametrize("name", [*DOCUMENTS, *OF_CHECKPOINTS])
def test_commands_that_read_a_run_succeed_or_print_one_line_of_error(run: Config, name: str) -> None:
    url = run.url
    for garbage, harm in GARBAGE.items():
        shutil.rmtree(url)
        shutil.copytree(Path(url).parent / "kept", url)
        harm(files(run)[name])
        began_s = time.monotonic()
        assert output_of("status", url), garbage
        output_of("status", url, "--json")
        output_of("stop", url, "--no-wait")
        output_of("profile", url)
        output_of("checkpoints", "list", url)
        output_of("checkpoints", "verify", url)
        output_of("checkpoints", "prune", url, "--keep-last", "1")
        assert time.monotonic() - began_s < 60, f"{garbage} delayed a command"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DOCUMENTS, *OF_CHECKPOINTS])
@pytest.mark.parametrize("garbage", ["wrong types", "a folder", "a pipe"])
def test_a_new_attempt_succeeds_or_prints_one_line_of_error(
    run: Config, name: str, garbage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    GARBAGE[garbage](files(run)[name])
    with suppress(SystemExit), errors_as_lines(debug=False):
        pretrain(changed(run, steps=3), FakeRuntime())
    printed = capsys.readouterr().err
    if "error: " in printed:
        assert len(printed.partition("error: ")[2].strip().splitlines()) == 1, printed
    else:
        store = open_store(run.url)
        status = attempts.status(store, attempts.newest(store))
        assert isinstance(status, Status)
        assert status.how in {"done", "stopped"}  # There is a stop request, unless the garbage has replaced it.


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CHECKPOINTS)
def test_an_evaluation_succeeds_or_prints_one_line_of_error(run: Config, name: str, faces: str) -> None:
    for garbage, harm in GARBAGE.items():
        shutil.rmtree(run.url)
        shutil.copytree(Path(run.url).parent / "kept", run.url)
        harm(files(run)[name])
        assert output_of("evaluate", run.url, "--data", faces), garbage
