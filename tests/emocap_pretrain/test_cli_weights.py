"""Tests which weights of a run are evaluated: those of the last step, or their moving average."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emocap_shards.store import open_store
from pretrain_fakes import FakeRuntime, changed, stand_alone
from typer.testing import CliRunner, Result

from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.training.loop import pretrain


@pytest.fixture(scope="module")
def run(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run of three steps that keeps an average of its weights. The average is far from the weights."""
    average = {"decay": 0.9, "warmup": False}
    config = changed(tiny(tmp_path_factory.mktemp("weights")), steps=3, optimizer__lr=0.1, ema=average)
    stand_alone()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        pretrain(config, FakeRuntime())
    return config


@pytest.fixture
def report(run: Config) -> Report:
    found = RunFolder(open_store(run.url)).report(3)
    assert found is not None
    return found


def evaluate(*words: str | Path) -> Result:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done


def printed(*words: str | Path) -> dict[str, Any]:
    done = evaluate(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_the_average_is_evaluated_and_named(run: Config, report: Report, faces: str) -> None:
    assert report.weights == "ema"
    assert "| evaluated weights | moving average of the weights |" in report.markdown()
    found = printed(run.url, "--data", faces)
    assert found["weights"] == "ema"
    (result,) = found["results"]
    assert {each["name"]: each["value"] for each in result["scores"]} == {
        each.name: each.value for each in report.results[0].scores
    }
    assert "moving average of the weights" in evaluate(run.url, "--data", faces).stdout


def test_the_weights_of_the_step_are_evaluated_on_request(run: Config, faces: str) -> None:
    assert printed(run.url, "--data", faces, "--weights", "raw")["weights"] == "raw"
    assert "weights of the step" in evaluate(run.url, "--data", faces, "--weights", "raw").stdout
    average, raw = restore(run.url), restore(run.url, weights="raw")
    assert (average.weights, raw.weights) == ("ema", "raw")
    weights = raw.model.state_dict()
    assert not any(each.equal(weights[name]) for name, each in average.model.named_parameters() if each.ndim > 1)


def test_an_average_is_not_switched_on_or_off_in_the_middle_of_a_run(run: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"was started with ema.decay=0.9, now it is nothing"):
        pretrain(changed(run, steps=5, ema=None), FakeRuntime())
    other = changed(run, url=str(tmp_path), ema=None)
    RunFolder(open_store(other.url)).write_run(other, "id")
    with pytest.raises(ConfigError, match=r"was started with ema(.decay)?=nothing, now it is"):
        pretrain(changed(other, ema={}), FakeRuntime())
