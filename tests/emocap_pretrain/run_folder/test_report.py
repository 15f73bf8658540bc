import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.run_folder.documents import REPORT as REPORT_KIND
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

MATRIX = Confusion(("joy", "fear", "anger"), np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))
RESULT = TaskResult(
    task="zero_shot",
    samples=int(MATRIX.counts.sum()),
    scores=MATRIX.scores("prompted"),
    class_values=(MATRIX.recalls("prompted"),),
    confusion_matrices=(MATRIX.matrix("Prompted"),),
    url="/data/test",
)
REPORT = Report(
    name="tiny",
    url="/runs/tiny",
    step=240,
    seconds=61.4,
    ranks=2,
    samples_per_s=375.0,
    loss=2.5,
    run_id="abc",
    tracking_uri="sqlite:////m.db",
    results=(RESULT,),
)


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_report_is_read_back_from_its_json():
    for report in (REPORT, dataclasses.replace(REPORT, results=())):
        assert REPORT_KIND.parse(REPORT_KIND.dump(report)) == report


def test_the_table_shows_chance_and_the_majority_class_with_the_results():
    text = shown(REPORT)
    assert "62.5%  (chance 50.0%: 2 classes)" in text
    assert "66.7%  (majority class 66.7%)" in text
    assert "6 samples of /data/test" in text


def test_the_table_shows_speed_ranks_loss_and_folder():
    text = shown(REPORT)
    for part in ("Run tiny", "240 on 2 ranks", "61 s, 375 samples/s", "2.500", "/runs/tiny"):
        assert part in text
    assert "240 on 1 rank " in shown(dataclasses.replace(REPORT, ranks=1))


def test_the_table_of_a_run_without_evaluation_has_no_scores():
    text = shown(dataclasses.replace(REPORT, results=()))
    assert "prompted" not in text
    assert "last loss" in text


def test_the_table_shows_each_score_before_and_after_training():
    before = dataclasses.replace(RESULT, scores=(dataclasses.replace(RESULT.scores[0], value=0.25),))
    text = shown(dataclasses.replace(REPORT, before_training=(before,)))
    assert "│ before training → after training" in text
    assert "│ 25.0% → 62.5%  (chance 50.0%: 2 classes)" in text
    assert "│ 66.7%  (majority class 66.7%)" in text
    error = Score("rmse", "valence error", 0.125, is_share=False)
    assert error.text(0.5) == "0.5 → 0.125"


def test_the_table_of_a_run_without_steps_has_no_training():
    text = shown(dataclasses.replace(REPORT, step=0, seconds=0.0, samples_per_s=0.0, loss=None))
    assert "0 on 2 ranks, the model before training" in text
    assert "62.5%  (chance" in text
    assert not any(words in text for words in ("training time", "last loss"))


def test_the_table_names_the_checkpoint_with_whose_weights_the_run_began():
    report = dataclasses.replace(REPORT, warm_start=Parent("/runs/first", 1200, "abc", "0123"))
    assert "step 1,200 of /runs/first" in shown(report)
    assert REPORT_KIND.parse(REPORT_KIND.dump(report)) == report


def test_the_markdown_has_the_rows_of_the_table():
    lines = REPORT.markdown().splitlines()
    assert lines[:3] == ["|  | tiny |", "| --- | --- |", "| steps | 240 on 2 ranks |"]
    assert "| prompted UAR | 62.5%  (chance 50.0%: 2 classes) |" in lines


def test_a_score_that_is_not_a_share_is_not_shown_in_per_cent():
    error = Score("rmse", "valence error", 0.123456, Baseline("mean", 0.25), is_share=False)
    assert error.text() == "0.1235  (mean 0.25)"
    assert TaskResult("regression", 3, (error,), url="d").metrics() == {"regression/rmse": 0.123456}


@pytest.mark.parametrize(("name", "value"), [("UAR", 0.5), ("uar/", 0.5), ("recall@1", 0.5), ("uar", math.nan)])
def test_a_score_with_a_name_or_value_that_mlflow_refuses_cannot_be_made(name: str, value: float):
    with pytest.raises(ValueError, match="score"):
        Score(name, "a title", value)


V1 = {  # The report that version 0.1.0 wrote, without its schema number.
    "name": "tiny",
    "url": "/runs/tiny",
    "step": 240,
    "seconds": 61.4,
    "ranks": 2,
    "samples_per_s": 375.0,
    "loss": 2.5,
    "run_id": "abc",
    "tracking_uri": "sqlite:////m.db",
    "zero_shot": {
        "url": "/data/test",
        "classes": ["joy", "fear", "anger"],
        "counts": [[3, 1, 0], [1, 1, 0], [0, 0, 0]],
        "uar": MATRIX.uar,
        "war": MATRIX.war,
        "chance": MATRIX.chance,
        "majority": MATRIX.majority,
    },
}


@pytest.mark.parametrize("schema", [{}, {"schema": 1}])
def test_a_report_of_schema_1_is_read_as_a_list_of_results(schema: dict[str, int]):
    found = REPORT_KIND.of({**V1, **schema})
    (result,) = found.results
    assert result.confusion_matrices[0].counts == RESULT.confusion_matrices[0].counts
    assert dataclasses.replace(result, confusion_matrices=()) == dataclasses.replace(RESULT, confusion_matrices=())
    assert shown(found) == shown(REPORT)
    assert REPORT_KIND.of({**V1, **schema, "zero_shot": None}).results == ()


@pytest.mark.parametrize(
    "wrong",
    [7, [], {"url": 3}, V1["zero_shot"] | {"counts": [[1], [1, 2], []]}, V1["zero_shot"] | {"counts": [[1, 2, 3]] * 9}],
)
def test_an_unreadable_result_of_schema_1_makes_the_report_unreadable(wrong: object):
    with pytest.raises(ValueError, match=r"zero_shot|class|dictionary|url|missing|shorter") as caught:
        REPORT_KIND.parse(json.dumps({**V1, "zero_shot": wrong}).encode())
    assert "\n" not in str(caught.value)


def test_a_report_of_0_1_0_belongs_to_settings_with_its_dataset_and_classes_without_tasks():
    found = REPORT_KIND.of(V1)
    settings = EvaluationConfig(url="/data/test").model_dump(mode="json")
    assert found.evaluated_with(settings)
    assert found.evaluated_with(settings | {"classes": {"joy": ["a"], "fear": ["b"], "anger": ["c"]}})
    assert not found.evaluated_with(settings | {"classes": {"joy": ["a"]}})
    assert not found.evaluated_with(settings | {"url": "/data/other"})
    assert not found.evaluated_with(settings | {"tasks": ["retrieval"]})


def test_settings_stored_before_tasks_existed_equal_those_without_tasks():
    settings = EvaluationConfig(url="/data/test").model_dump(mode="json")
    before = {name: value for name, value in settings.items() if name != "tasks"}
    found = dataclasses.replace(REPORT, evaluation=before)
    assert found.evaluated_with(settings)
    assert found.evaluated_with(settings | {"batch": 1})
    assert not found.evaluated_with(settings | {"tasks": ["zero_shot", "retrieval"]})
