"""Tests the addresses of MLflow's pages, and the saved view that its page of runs reads."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from emocap_pretrain.config.load import load
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.health.timing import SECTIONS
from emocap_pretrain.run import print_pages
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.tracking import pages

ADDRESS = "http://127.0.0.1:5000/#/experiments/1/runs"


def state() -> dict[str, Any]:
    """Returns the state of the page from a saved view, unpacked as the page does it."""
    envelope = json.loads(pages.saved_view(tasks.charts()))
    assert isinstance(envelope["name"], str)
    assert isinstance(envelope["createdAt"], int)
    packed = envelope["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_both_addresses_open_the_pages_of_training() -> None:
    assert pages.addresses("http://127.0.0.1:5000/", "1", "abc") == {
        "this run": f"{ADDRESS}/abc?workflowType=machine_learning",
        "all runs": f"{ADDRESS}?workflowType=machine_learning&viewStateShareKey=training&compareRunsMode=CHART",
    }


def test_the_saved_view_fits_the_tag_of_an_older_server() -> None:
    assert len(pages.saved_view(tasks.charts())) < 5000


def test_the_list_of_runs_shows_loss_and_uar_first() -> None:
    assert state()["selectedColumns"][:2] == ["metrics.`loss`", "metrics.`zero_shot/uar`"]
    assert state()["columnOrder"] == state()["selectedColumns"]


def test_the_sections_keep_their_order() -> None:
    assert [section["name"] for section in state()["compareRunSections"]][:2] == ["Evaluation", "Loss"]
    assert state()["isAccordionReordered"]


def test_a_metric_is_drawn_in_one_chart() -> None:
    drawn = [chart for chart in state()["compareRunCharts"] if not chart["deleted"]]
    metrics = [metric for chart in drawn for metric in chart["selectedMetricKeys"]]
    assert len(metrics) == len(set(metrics))
    sections = {section["uuid"] for section in state()["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in drawn} == sections
    # MLflow looks for a chart whose first metric is this one, and draws a chart of its own where there is none.
    assert sorted(chart["metricKey"] for chart in state()["compareRunCharts"]) == sorted(metrics)


def test_the_parts_of_a_step_share_a_chart() -> None:
    charts = [chart.get("selectedMetricKeys", []) for chart in state()["compareRunCharts"]]
    assert ["time/step_s", *(f"time/{name}_s" for name in SECTIONS)] in charts


@pytest.mark.parametrize(
    ("uri", "lines"),
    [
        ("https://user:secret@host", ["this run: https://host/#/experiments/7/runs/abc?workflowType=machine_learning"]),
        (
            "sqlite:///m.db",
            ["mlflow ui --backend-store-uri sqlite:///", "this run: http://127.0.0.1:5000/#/experiments/7"],
        ),
        ("${oc.env:OUR_TRACKER}", ["this run: ${oc.env:OUR_TRACKER}/#/experiments/7/runs/abc?workflowType"]),
    ],
)
def test_a_run_ends_with_the_addresses_and_without_a_secret(
    uri: str, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUR_TRACKER", "https://secret.host")
    path = tmp_path / "c.yaml"
    path.write_text(f"name: n\nurl: r\nsteps: 1\nglobal_batch: 2\ndata: {{url: d}}\ntracking: {{uri: '{uri}'}}\n")
    print_pages(load(path), Report("n", "r", 1, 1.0, 1, 1.0, run_id="abc", experiment_id="7"))
    out = capsys.readouterr().out
    assert "secret" not in out
    assert out.rstrip().endswith("compareRunsMode=CHART")
    for line in lines:
        assert line in out


def test_the_report_of_an_older_version_ends_with_the_address_of_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: n\nurl: r\nsteps: 1\nglobal_batch: 2\ndata: {url: d}\ntracking: {uri: 'http://host'}\n")
    print_pages(load(path), Report("n", "r", 1, 1.0, 1, 1.0, run_id="abc"))
    assert capsys.readouterr().out == "runs: http://host\n"
