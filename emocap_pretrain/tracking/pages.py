"""Creates links to the web pages that MLflow shows for a run, and the saved view that every experiment gets.

By default MLflow 3.17 lists runs without their metrics, and draws one chart for each metric, in alphabetical order. A
saved view is a selection of columns and charts that replaces this default. It is stored as a tag of the experiment. The
page that lists the runs shows it under "Views", and a link can open it. The format of the tag is internal to MLflow's
web interface and was found by reading version 3.17.2. An MLflow version that cannot read the saved view shows its
default view. Therefore a person must check the page after an update of MLflow (decision 32).

This module does not import MLflow. So `emocap_pretrain/run.py` can print the addresses without importing MLflow, too.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

from emocap_pretrain.data.parts import PARTS

Charts = Sequence[Sequence[str]]
"""Charts, each as the names of the metrics that share it."""

CHECKPOINT_LOSS = "checkpoint/loss"
"""The loss at the steps that have a checkpoint."""

VIEW = "training"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_PARTS = tuple(part.name for part in PARTS)
# The sections of `health.timing.SECTIONS`, which is above this module in the order of imports.
_TIMES = ("data", "forward", "loss", "backward", "update", "saving")


def _by_part(name: str) -> tuple[str, ...]:
    return tuple(f"{part}/{name}" for part in _PARTS)


# Each section holds charts, and a chart the metrics that share it. The most important sections and charts come first.
_SECTIONS: dict[str, Charts] = {
    "Loss": (
        ("loss",),
        _by_part("loss"),
        (CHECKPOINT_LOSS,),
        _by_part("image_to_text"),
        _by_part("text_to_image"),
    ),
    "Recall in the batch": (
        _by_part("recall_at_1_image_to_text"),
        _by_part("recall_at_1_text_to_image"),
        _by_part("positives"),
    ),
    "Optimization": (
        ("learning_rate",),
        ("gradient_norm",),
        ("scale", "local_scale"),
        ("bias",),
        ("skipped",),
        ("loss_scale",),
        ("overflows",),
    ),
    "Speed": (
        ("samples_per_s",),
        ("time/step_s", *(f"time/{name}_s" for name in _TIMES)),
        tuple(f"time/{name}_s_slowest" for name in _TIMES),
        ("data_wait_share",),
        ("straggler_factor",),
        ("straggler_rank",),
        ("memory_gib", "device_memory_gib"),
        ("device_utilization", "device_utilization_lowest"),
        ("text_tokens_per_s",),
    ),
    "Texts that are cut": (tuple(f"cut/{name}" for name in (*_PARTS, "prompts")),),
}
_BARS = ("Evaluation", "Texts that are cut")  # A metric of these has one value; as a line it would be a single point.


def sections(evaluation: Charts) -> dict[str, Charts]:
    """Returns the charts of the saved view, by the title of their section.

    The most important sections come first, and so do the most important charts of a section.

    Args:
        evaluation: The charts of the evaluation tasks; the most important chart comes first.
    """
    return {"Evaluation": tuple(evaluation), **_SECTIONS} if evaluation else _SECTIONS


def addresses(server: str, experiment_id: str, run_id: str) -> dict[str, str]:
    """Returns the addresses of two pages in MLflow, by the labels under which they are printed.

    "this run" is the page of the run, and "all runs" is the page that compares all runs of the experiment. Both
    addresses select MLflow's pages for training. Without that selection MLflow opens its pages for generative AI, where
    a checkpoint of a run is shown as a version of an agent.

    Args:
        server: Address of the MLflow server, such as http://127.0.0.1:5000.
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the run.
    """
    runs = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
    training = "workflowType=machine_learning"
    return {
        "this run": f"{runs}/{run_id}?{training}",
        "all runs": f"{runs}?{training}&viewStateShareKey={VIEW}&compareRunsMode=CHART",
    }


def saved_view(evaluation: Charts = ()) -> str:
    """Returns the value of the tag `VIEW_TAG`: a saved view in MLflow's format.

    The list of runs shows the loss, the first metric of the evaluation, and the samples per second.

    Args:
        evaluation: The charts of the evaluation tasks; the most important chart comes first.
    """
    charts = sections(evaluation)
    metrics = ["loss", *(chart[0] for chart in evaluation[:1]), "samples_per_s"]
    columns = [*(f"metrics.`{name}`" for name in metrics), "attributes.`Dataset`", "attributes.`Models`"]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False} for name in charts
        ],
        "compareRunCharts": [
            card for section, drawn in charts.items() for metrics in drawn for card in _cards(section, metrics)
        ],
        "isAccordionReordered": True,  # Otherwise the page sorts the sections by name.
    }
    # Compressed as MLflow's own views are: the value of a tag has at most 20,000 characters.
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def _cards(section: str, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Returns MLflow's descriptions ("cards") of one chart that several metrics share.

    The first card describes the shared chart. MLflow's page would also draw a separate chart for each metric except the
    first one. So the other cards describe these separate charts and mark them as deleted; then the page omits them.
    """
    card = {"metricSectionId": section, "type": "BAR" if section in _BARS else "LINE", "isGenerated": False}
    shared = card | {
        "uuid": "+".join(metrics),
        "deleted": False,
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "runsCountToCompare": 10,
    }
    return [shared, *(card | {"uuid": metric, "metricKey": metric, "deleted": True} for metric in metrics[1:])]
