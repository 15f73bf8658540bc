"""Tests that a run is evaluated with the weights of its last step, their average, or an interpolation."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cli_calls
import pytest
import torch
from emocap_shards.store import open_store
from mlflow.tracking import MlflowClient
from pretrain_fakes import FakeRuntime, changed, finished

from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.training.loop import pretrain


@pytest.fixture(scope="module")
def run(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Returns the config of a finished run, with a checkpoint of step 0 and an average far from the weights."""
    config = changed(
        tiny(tmp_path_factory.mktemp("weights")),
        steps=3,
        optimizer__lr=0.1,
        checkpoint={"every_steps": 1, "keep_last": 1},
        ema={"decay": 0.9, "warmup": False},
        evaluation__interpolate=[0, 0.5, 1],
    )
    return finished(config)


@pytest.fixture
def report(run: Config) -> Report:
    found = RunFolder(open_store(run.url)).report(3)
    assert found is not None
    return found


evaluate, printed = partial(cli_calls.called, "evaluate"), partial(cli_calls.printed, "evaluate")


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


def scores(results: Any) -> dict[str, float]:
    return {each["name"]: each["value"] for result in results for each in result["scores"]}


def test_the_report_and_the_tracker_compare_the_weights_and_have_the_curve(run: Config, report: Report) -> None:
    others = [(each.weights, each.share) for each in report.other_weights]
    assert others == [("raw", None), ("ema", 0.0), ("ema", 0.5), ("ema", 1.0)]
    assert report.other_weights[-1].results[0].scores == report.results[0].scores
    assert "prompted UAR by share of training | 0: " in report.markdown()
    client = MlflowClient(run.tracking.uri)
    logged = client.get_run(report.run_id).data.metrics
    assert logged["raw/zero_shot/uar"] == report.other_weights[0].results[0].scores[0].value
    assert {f"interpolated_{share}/zero_shot/uar" for share in ("0", "0.5", "1")} < logged.keys()
    assert "pictures/interpolation.png" in {each.path for each in client.list_artifacts(report.run_id, "pictures")}


def test_the_start_is_kept_and_any_share_is_restored(run: Config) -> None:
    assert [each.step for each in committed(open_store(run.url))] == [3, 0], "only the start and the end are kept"
    start, end = restore(run.url, step=0, weights="raw"), restore(run.url)
    half = restore(run.url, interpolate=0.5)
    assert (half.share, half.weights, half.step) == (0.5, "ema", 3)
    first, last = dict(start.model.named_parameters()), dict(end.model.named_parameters())
    for name, each in half.model.named_parameters():
        torch.testing.assert_close(each, (first[name] + last[name]) / 2)
    for share, wanted in ((0, first), (1, last)):
        found = restore(run.url, interpolate=share).model
        assert all(each.equal(wanted[name]) for name, each in found.named_parameters())


def test_one_share_has_all_results_and_several_make_a_curve(run: Config, faces: str, tmp_path: Path) -> None:
    half = printed(run.url, "--data", faces, "--interpolate", "0.5")
    assert (half["share"], half["other_weights"]) == (0.5, [])
    picture = tmp_path / "curve.png"
    curve = printed(run.url, "--data", faces, "--curve", "0.5,1", "--picture", picture)
    assert [each["share"] for each in curve["other_weights"]] == [0.5, 1.0]
    assert scores(curve["other_weights"][0]["results"]) == scores(half["results"])
    assert scores(curve["other_weights"][1]["results"]) == scores(curve["results"])
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--curve", "0,x"), "--curve 0,x: give numbers from 0 to 1"),
        (("--curve", "0,1.5"), "give numbers from 0 to 1"),
        (("--curve", "0,1", "--interpolate", "0.5"), "--curve evaluates interpolations with several shares"),
    ],
)
def test_wrong_shares_are_refused_in_one_line(run: Config, faces: str, words: tuple[str, ...], message: str) -> None:
    done = evaluate(run.url, "--data", faces, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_run_without_its_start_is_not_interpolated(run: Config, faces: str, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(run.url, copied)
    shutil.rmtree(copied / "checkpoints" / "step-00000000")
    done = evaluate(copied, "--data", faces, "--interpolate", "0.5")
    assert done.exit_code == 1
    assert "has no checkpoint of step 0, so the weights of its start are not known" in done.stderr
