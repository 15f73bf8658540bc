"""Tests how the results of a model with other weights are stored, named and shown."""

from dataclasses import replace

from emocap_pretrain.run_folder.documents import REPORT
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import Baseline, OtherWeights, Score, TaskResult, curves, other_weights_rows

CHANCE = Baseline("chance", 0.1)


def of(name: str, value: float) -> TaskResult:
    scores = (Score("first", f"{name} first", value, CHANCE), Score("second", f"{name} second", 0.5))
    return TaskResult(name, 8, scores, url="data")


OTHERS = (
    OtherWeights("raw", None, (of("a", 0.3), of("b", 0.6))),
    OtherWeights("ema", 1.0, (of("a", 0.4), of("b", 0.7))),
    OtherWeights("ema", 0.25, (of("a", 0.2), of("b", 0.8))),
)
REPORT_OF_TWO = Report("run", "runs/run", 9, 1.0, 1, 9.0, results=(of("a", 0.4),), weights="ema", other_weights=OTHERS)


def test_a_curve_has_the_main_score_of_a_task_by_share() -> None:
    first, second = curves(OTHERS)
    assert [(share, score.value) for share, score in first.points] == [(0.25, 0.2), (1.0, 0.4)]
    assert second.title == "b first"
    assert first.text() == "0.25: 20.0% · 1: 40.0%"
    assert curves(OTHERS[:1]) == []


def test_the_tracker_gets_the_scores_of_other_weights_under_names_of_their_own() -> None:
    assert OTHERS[0].metrics() == {"raw/a/first": 0.3, "raw/a/second": 0.5, "raw/b/first": 0.6, "raw/b/second": 0.5}
    assert "interpolated_0.25/a/first" in OTHERS[2].metrics()


def test_the_report_shows_the_weights_of_the_step_and_the_curves() -> None:
    assert other_weights_rows(OTHERS) == [
        ("a first, weights of the step", "30.0%  (chance 10.0%)"),
        ("b first, weights of the step", "60.0%  (chance 10.0%)"),
        ("a first by share of training", "0.25: 20.0% · 1: 40.0%"),
        ("b first by share of training", "0.25: 80.0% · 1: 70.0%"),
    ]
    text = REPORT_OF_TWO.markdown()
    assert "| a first by share of training | 0.25: 20.0% · 1: 40.0% |" in text
    assert "| evaluated weights | moving average of the weights |" in text


def test_a_report_keeps_the_results_with_other_weights_and_one_without_them_is_read() -> None:
    assert REPORT.parse(REPORT.dump(REPORT_OF_TWO)) == REPORT_OF_TWO
    plain = replace(REPORT_OF_TWO, weights="raw", other_weights=())
    assert other_weights_rows(plain.other_weights) == []
    assert "evaluated weights" not in plain.markdown()
