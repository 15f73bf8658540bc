import dataclasses
import io

import numpy as np
from rich.console import Console

from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.run_folder.documents import REPORT as REPORT_KIND
from emocap_pretrain.run_folder.report import Report

MATRIX = Confusion(("joy", "fear", "anger"), np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))
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
    zero_shot=MATRIX.result("/data/test"),
)


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_report_comes_back_from_its_json():
    for report in (REPORT, dataclasses.replace(REPORT, zero_shot=None)):
        assert REPORT_KIND.parse(REPORT_KIND.dump(report)) == report


def test_the_table_states_chance_and_the_majority_beside_the_results():
    text = shown(REPORT)
    assert "62.5%  (chance 50.0%: 2 classes)" in text
    assert "66.7%  (majority class 66.7%)" in text
    assert "6 samples of /data/test" in text


def test_the_table_states_speed_ranks_loss_and_place():
    text = shown(REPORT)
    for part in ("Run tiny", "240 on 2 ranks", "61 s, 375 samples/s", "2.500", "/runs/tiny"):
        assert part in text


def test_a_run_without_evaluation_has_no_such_rows():
    text = shown(dataclasses.replace(REPORT, zero_shot=None))
    assert "zero-shot" not in text
    assert "last loss" in text


def test_the_markdown_has_the_rows_of_the_table():
    lines = REPORT.markdown().splitlines()
    assert lines[:3] == ["|  | tiny |", "| --- | --- |", "| steps | 240 on 2 ranks |"]
    assert "| zero-shot UAR | 62.5%  (chance 50.0%: 2 classes) |" in lines
