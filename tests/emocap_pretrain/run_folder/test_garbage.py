"""Puts garbage into one file of a run's folder at a time; each command must succeed or print one line of error."""

import gzip
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.store import open_store
from pretrain_fakes import FakeRuntime, changed, finished
from safetensors.torch import save_file
from typer.testing import CliRunner

from emocap_pretrain.checkpoint.layout import manifest_of, replaced_manifest_of
from emocap_pretrain.cli import requests as requesting
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.run_folder import attempts, documents, requests, state, storage, unsent
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.documents import (
    ATTEMPT,
    PROFILE_ANSWER,
    QUARANTINE,
    AttemptDocument,
    Failure,
    ProfileAnswer,
    ProfileRequest,
    QuarantineDocument,
    QuarantinedSample,
    Status,
)
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable
from emocap_pretrain.terminal import errors_as_lines
from emocap_pretrain.tracking.spool import row
from emocap_pretrain.training.guard import Guard
from emocap_pretrain.training.loop import pretrain

# The kind of each document of a run; None for a file that no program reads as a document.
DOCUMENTS: dict[str, DocumentKind[Any] | None] = {
    "run.json": documents.RUN,
    "before_training.json": documents.STEP_RESULTS,
    "evaluations/step-N.json": documents.STEP_RESULTS,
    "report.json": documents.REPORT,
    "skipped.json": documents.SKIPPED,
    "quarantine.json": documents.QUARANTINE,
    "unsent.json": documents.UNSENT,
    "attempts/N/attempt.json": documents.ATTEMPT,
    "attempts/N/status.json": documents.STATUS,
    "attempts/N/failed-N.json": documents.FAILURE,
    "starts/N/start.json": documents.ATTEMPT,
    "requests/stop.json": documents.STOP_REQUEST,
    "requests/profile-ab.json": documents.PROFILE_REQUEST,
    "requests/refused-stop.json": None,
    "profiles/ab.json": documents.PROFILE_ANSWER,
    "profiles/step-N-rank-N.json.gz": None,
    "weights.txt": None,
}
OF_CHECKPOINTS = (
    "checkpoints/step-N/manifest.json",
    "checkpoints/step-N/REPLACED",
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

# Where each case trains or evaluates, only these are tried.
FEW = ("wrong types", "a folder", "a pipe")


@pytest.fixture(scope="module")
def made(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Returns the config of a finished run with every kind of file that a run can have, and a copy of its folder.

    The run starts from the weights of a file, so its folder has the table of loaded weights and the results before
    training. Its first checkpoint is evaluated too, so the folder has the results of a step.
    """
    root = tmp_path_factory.mktemp("garbage")
    weights, config = root / "weights.safetensors", tiny(root)
    save_file(dict(TimmImageTower(config.model.image).backbone.state_dict()), weights)
    often: dict[str, object] = {"checkpoint__every_steps": 1, "evaluation__every_checkpoints": 1}
    config = changed(config, steps=2, model__image__pretrained=str(weights), data__error_budget=5, **often)
    finished(config)
    store = open_store(config.url)
    Attempt(store, 1).record_failure(Failure(1, "host", 2, "ValueError", "no pixels"))
    Guard(config.health).remember(store, 9, "a spike")
    storage.write(
        store, "quarantine.json", QUARANTINE, QuarantineDocument((QuarantinedSample("a.tar", "1", "damaged"),))
    )
    unsent.write_or_warn(store, [row("metrics", 1, {"loss": 1.0})], number=1)
    requests.ask_to_stop(store)
    requests.ask_for_profile(store, ProfileRequest("ab", 1))
    trace = "profiles/step-00000001-rank-00000.json.gz"
    storage.write(store, "profiles/ab.json", PROFILE_ANSWER, ProfileAnswer((1, 1), (trace,)))
    store.put(trace, gzip.compress(b"{}"))
    # Files of rarer events: a refused request, a manifest that a new save has replaced, an attempt of version 0.1.0.
    store.put("requests/refused-stop.json", b"stop")
    store.put(replaced_manifest_of(2, "0" * 64), store.read(manifest_of(2)))
    store.put("starts/00001/start.json", ATTEMPT.dump(AttemptDocument(1, 1.0, 1)))
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


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns a list that gets the seconds of every sleep. They do not depend on how busy the machine is."""
    seconds: list[float] = []
    sleep = time.sleep

    def recorded(pause_s: float) -> None:
        seconds.append(pause_s)
        sleep(pause_s)

    monkeypatch.setattr(time, "sleep", recorded)
    return seconds


def kind_of(path: str) -> str:
    path = re.sub(r"/0\d+-[0-9a-f]{32}/", "/ATTEMPT/", path)
    path = re.sub(r"/engine/.*", "/engine/FILE", path)
    path = re.sub(r"/replaced-[0-9a-f]{16}\.json", "/REPLACED", path)
    return re.sub(r"(?<=[/-])\d{5,}", "N", path)


def files(config: Config) -> dict[str, Path]:
    """Returns one path of every kind of file in the run's folder."""
    return {kind_of(entry.path): Path(config.url, entry.path) for entry in open_store(config.url).list()}


def test_every_kind_of_file_has_a_case(run: Config) -> None:
    assert files(run).keys() == {*DOCUMENTS, *OF_CHECKPOINTS}


def test_every_kind_of_document_has_a_case() -> None:
    kinds = [each for each in vars(documents).values() if isinstance(each, DocumentKind)]
    assert {id(each) for each in kinds} == {id(each) for each in DOCUMENTS.values() if each}


@pytest.mark.parametrize("path", [path for path, kind in DOCUMENTS.items() if kind])
def test_every_case_is_a_document_of_its_kind(run: Config, path: str) -> None:
    kind = DOCUMENTS[path]
    assert kind
    assert not isinstance(
        storage.read(open_store(run.url), str(files(run)[path].relative_to(run.url)), kind), Unreadable
    )


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
def test_commands_that_read_a_run_succeed_or_print_one_line_of_error(
    run: Config, name: str, slept_s: list[float]
) -> None:
    url = run.url
    for garbage, harm in GARBAGE.items():
        shutil.rmtree(url)
        shutil.copytree(Path(url).parent / "kept", url)
        harm(files(run)[name])
        slept_s.clear()
        assert output_of("status", url), garbage
        output_of("status", url, "--json")
        output_of("stop", url, "--no-wait")
        output_of("profile", url)
        output_of("checkpoints", "list", url)
        output_of("checkpoints", "verify", url)
        output_of("checkpoints", "prune", url, "--keep-last", "1")
        assert sum(slept_s) < 60, f"{garbage} made a command wait"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("name", [*DOCUMENTS, *OF_CHECKPOINTS])
@pytest.mark.parametrize("garbage", FEW)
def test_a_start_of_the_finished_run_and_a_new_attempt_succeed_or_print_one_line_of_error(
    run: Config, name: str, garbage: str, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    GARBAGE[garbage](files(run)[name])
    with suppress(SystemExit), errors_as_lines(debug=False):
        pretrain(changed(run, steps=steps), FakeRuntime())
    printed = capsys.readouterr().err
    if "error: " in printed:
        assert len(printed.partition("error: ")[2].strip().splitlines()) == 1, printed
    elif steps == 3:
        store = open_store(run.url)
        status = attempts.status(store, attempts.newest(store))
        assert isinstance(status, Status)
        assert status.how in {"done", "stopped"}  # There is a stop request, unless the garbage has replaced it.
    else:
        assert RunFolder(open_store(run.url)).report(steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DOCUMENTS, *OF_CHECKPOINTS])
def test_an_evaluation_succeeds_or_prints_one_line_of_error(run: Config, name: str, faces: str) -> None:
    for garbage in GARBAGE if name in OF_CHECKPOINTS else FEW:
        shutil.rmtree(run.url)
        shutil.copytree(Path(run.url).parent / "kept", run.url)
        GARBAGE[garbage](files(run)[name])
        assert output_of("evaluate", run.url, "--data", faces), garbage
