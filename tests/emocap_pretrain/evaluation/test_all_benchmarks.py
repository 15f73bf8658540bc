"""Tests the full evaluation of one model in one command: every benchmark, every task that it allows, and the page."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from benchmark_trees import build, raf_db
from cli_calls import called
from video_trees import build_video

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.layouts import FrameLabels
from emocap_pretrain.config.schema import Config
from emocap_pretrain.evaluation import few_shot, intervals
from emocap_pretrain.evaluation.on_benchmarks import tasks_of
from emocap_pretrain.evaluation.result_file import load

LEARNED = {"linear_probe", "few_shot", "nearest_neighbours", "temperature_scaling", "ridge_regression"}


def copy_of(name: str, root: Path) -> Path:
    """Writes a tiny copy of a benchmark, and returns its folder."""
    card = catalogue.card(name)
    if name == "raf_db":
        raf_db(root, 20)  # With enough examples for a split on which choices are made.
        return root
    if card.media == "video" or isinstance(card.layouts[0], FrameLabels):
        build_video(card, root)
    else:
        build(card, card.layouts[0], root)
    return root


# scikit-learn warns of the few examples of the tiny copies.
@pytest.mark.filterwarnings("ignore:The number of unique classes is greater than 50%:UserWarning")
def test_one_command_evaluates_a_model_on_all_benchmarks(
    finished_run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals.draws, "__defaults__", (50,))
    monkeypatch.setattr(few_shot, "DRAWS", 2)
    copies = [f"--benchmark={name}={copy_of(name, tmp_path / name)}" for name in catalogue.names()]
    files = ("--save", tmp_path / "all.json", "--html", tmp_path / "all.html", "--cache", tmp_path / "cache")
    done = called("evaluate", finished_run.url, "--device", "cpu", *copies, *files, "--json")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)["results"]
    found: dict[str, set[str]] = defaultdict(set)
    for each in results:
        found[each["benchmark"]].add(each["task"])
        assert each["samples"] > 0
    for name in catalogue.names():
        allowed = {
            task.name
            for task in tasks_of(finished_run.evaluation.model_copy(update={"tasks": None}), catalogue.card(name))
        }
        # Some tiny copies have no example that is held out of training.
        assert allowed - LEARNED <= found[name] <= allowed, name
    assert [name for name in catalogue.names() if not found[name]] == []
    # The tiny copy of RAF-DB has examples of each class in all splits.
    assert found["raf_db"] >= {"linear_probe", "few_shot", "nearest_neighbours", "temperature_scaling"}
    assert set.union(*found.values()) >= LEARNED | {"zero_shot", "retrieval", "unit_detection", "multiple_choice"}
    # Their only task learns, so their tiny copies have enough examples to learn from and to choose on.
    numbers = {name for name in catalogue.names() if catalogue.card(name).target.kind == "numbers"}
    assert {each["benchmark"] for each in results if each["task"] == "ridge_regression"} == numbers
    assert len(numbers) == 3
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert all(catalogue.card(name).title.replace("'", "&#39;") in page for name in catalogue.names())
    assert "radar chart" in page
    again = load(str(tmp_path / "all.json")).results()
    assert [(each.benchmark, each.task) for each in again] == [(each["benchmark"], each["task"]) for each in results]
