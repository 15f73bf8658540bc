"""Tests that the suite `finetune` trains, scores the split `test` once, and resumes an interrupted comparison."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rank_server
import yaml
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from tiny_run import tiny

from benchmarks.finetune import compare, tables, trainings
from benchmarks.finetune.suite import SUITE
from benchmarks.harness import record
from benchmarks.harness.machine import occasion
from benchmarks.harness.suite import run
from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.checkpoint.layout import manifest_of
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.schema import Config
from emocap_pretrain.evaluation.classification import LabelledRows, scored
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import TaskResult


def test_a_table_has_one_row_for_each_recipe_with_the_spread_of_its_seeds() -> None:
    about = occasion()

    def line(what: str, seed: int, uar: float) -> record.Measurement:
        more = {"war": uar + 0.1, "steps": 509}
        setting = {"split": "test", "minutes": 10, "seed": seed}
        return record.measured(
            about, [uar], what=what, contender="small", setting=setting, unit="UAR", more=more, versions={}
        )

    lines = [line(what, seed, 0.4 + 0.02 * seed) for what in (compare.PROMPTED, compare.PROBED) for seed in (0, 1)]
    row = tables.markdown(lines).splitlines()[2]
    uar, war = "41.0 (40.0 to 42.0)", "51.0 (50.0 to 52.0)"
    assert row == f"| small | 10 | 509 | 2 | {uar} | {war} | {uar} | {war} |"


@pytest.fixture
def options(tmp_path: Path, new_mlflow: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the options of a comparison of one tiny recipe.

    Each training is forked by `rank_server`, which has already imported the libraries. The speed is stored, so that no
    run has to measure it.
    """
    monkeypatch.setattr(trainings, "subprocess", rank_server)
    for name in ("train", "valid", "test"):
        write_shards(records(24, pixels=32), str(tmp_path / "data" / name), samples_per_shard=12)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(tiny("run", "data", "sqlite://", None)))
    runs = tmp_path / "runs"
    runs.mkdir()
    new_mlflow(runs / "mlflow.db")
    (runs / "small-1-minutes.json").write_text(json.dumps({"steps": 2, "samples_per_s": 1.0}))
    words = ["--data", str(tmp_path / "data"), "--runs", str(runs), "--minutes", "1", "--seeds", "3"]
    return [*words, "--recipes", str(recipe), "--out", str(tmp_path)]


def test_a_comparison_scores_each_run_once_and_a_repetition_trains_and_scores_nothing(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(SUITE, ["compare", *options]) == 0
    lines = record.read(tmp_path / "finetune.jsonl")
    assert [(line.contender, line.what, line.setting["seed"]) for line in lines] == [
        ("small, untouched", compare.PROMPTED, 0),
        ("small, untouched", compare.PROBED, 0),
        ("small", compare.PROMPTED, 3),
        ("small", compare.PROBED, 3),
    ]
    assert [line.more["steps"] for line in lines if line.more] == [0, 0, 2, 2]
    assert all(0 <= line.median <= 1 for line in lines)
    monkeypatch.setattr(compare, "restore", None)
    monkeypatch.setattr(trainings, "subprocess", None)
    assert run(SUITE, ["compare", *options]) == 0
    again = record.read(tmp_path / "finetune.jsonl")
    assert [line.median for line in again] == [line.median for line in lines]


def test_a_training_that_fails_ends_the_command_in_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "train" / "manifest.json").unlink()
    assert run(SUITE, ["compare", *options]) == 1
    assert "small.yaml: the run in" in capsys.readouterr().err


def test_recalls_of_runs_on_labels_come_from_their_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [{"name": "emotion", "classes": ["joy", "fear"], "balance": "inverse"}]
    objective = {"global": 0, "summary": 0, "local": 0, "labels": labels}
    config = Config.model_validate(tiny(str(tmp_path / "run"), "data", "sqlite://", None, steps=3, objective=objective))
    words = ["heads", config.url, "--out", str(tmp_path)]
    assert run(SUITE, words) == 1
    store = open_store(config.url)
    store.put(manifest_of(3), Checkpoint(3, "00001-a", (), {"config": config.stored()}).dump())
    rows = LabelledRows(np.arange(4), np.array([0, 0, 0, 1]), ("joy", "fear"), (None,) * 4)
    result = scored("fine_tuned_classes", "fine-tuned", rows, np.array([0, 0, 1, 1]))
    RunFolder(store).write_report(_report(config, result))
    assert run(SUITE, words) == 0
    (line,) = record.read(tmp_path / "labels.jsonl")
    assert line.median == pytest.approx((2 / 3 + 1) / 2)
    assert line.more is not None
    assert line.more["recalls"] == {"joy": pytest.approx(2 / 3), "fear": 1.0}
    assert "| tiny, balanced (inverse) | 3 | 24 | 1 | 83.3 | 75.0 |" in capsys.readouterr().out


def _report(config: Config, result: TaskResult) -> Report:
    return Report(
        name=config.name,
        url=config.url,
        step=config.steps,
        seconds=2.0,
        ranks=1,
        samples_per_s=12.0,
        loss=1.0,
        run_id="1",
        tracking_uri="",
        results=(result,),
        evaluation=None,
    )
