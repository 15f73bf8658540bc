"""Tests the detection of action units with a fake model.

The vector of the prompts of unit n is 1 in dimension n, and that of the prompts of its absence is the opposite vector.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_trees import build
from evaluation_jobs import embedder_of
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import UnitsTarget
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy, evaluate
from emocap_pretrain.evaluation.outcome_scores import with_intervals
from emocap_pretrain.evaluation.unit_detection import UnitDetection, sentences
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.samples import Samples

TASK = UnitDetection(EvaluationConfig(url="faces"))
UNITS = list(sentences())


class OneHot:
    """Takes the place of a model: prompts of unit n lie in dimension n, and those of its absence opposite."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), len(UNITS))
        for row, text in zip(rows, texts, strict=True):
            for place, (present, absent) in enumerate(sentences().values()):
                row[place] += float(text in present) - float(text in absent)
        return rows


MODEL: Any = OneHot()


def faces(vectors: np.ndarray, labels: list[dict[str, str | float]]) -> dict[Any, Features]:
    images = torch.from_numpy(vectors.astype(np.float32))
    return {"test": Features(tuple(map(str, range(len(labels)))), images, images, tuple(labels))}


def test_f1_and_auc_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth = random.random((60, 3)) < np.array([0.5, 0.2, 0.7])
    vectors = np.zeros((60, len(UNITS)))
    vectors[:, :3] = truth - 0.5 + random.normal(size=(60, 3))
    labels = [{unit: float(shown) for unit, shown in zip(UNITS, row, strict=False)} for row in truth]
    for row in range(5):
        del labels[row][UNITS[1]]  # These faces have no label of the second unit.
    features = faces(vectors, labels)
    result, test = TASK.result(MODEL, features), features["test"]
    rows = [slice(0, 60), slice(5, 60), slice(0, 60)]
    f1 = [f1_score(truth[each, place], vectors[each, place] > 0) for place, each in enumerate(rows)]
    auc = [roc_auc_score(truth[each, place], vectors[each, place]) for place, each in enumerate(rows)]
    found = {score.name: score for score in result.scores}
    assert found["f1"].value == pytest.approx(np.mean(f1), abs=1e-6)
    assert found["auc"].value == pytest.approx(np.mean(auc), abs=1e-6)
    always = [f1_score(truth[each, place], np.ones(len(truth[each]))) for place, each in enumerate(rows)]
    assert found["f1"].baseline is not None
    assert found["f1"].baseline.value == pytest.approx(np.mean(always), abs=1e-6)
    (values,) = result.class_values
    assert values.classes == tuple(UNITS[:3])
    assert values.samples == tuple(int(truth[each, place].sum()) for place, each in enumerate(rows))
    # The scores follow from what was found for each face, so they get intervals and can be compared.
    bounds = [score.interval for score in with_intervals(replace(result, scored_samples=Samples(test.keys))).scores]
    assert all(low < score.value < high for score, (low, high) in zip(result.scores, filter(None, bounds), strict=True))


def test_a_unit_that_no_face_or_every_face_shows_is_left_out_of_the_mean_it_does_not_have() -> None:
    labels: list[dict[str, str | float]] = [{"AU1": 1.0, "AU2": 0.0, "AU4": float(row)} for row in range(2)]
    vectors = np.zeros((2, len(UNITS)))
    vectors[:, 0] = 1
    vectors[1, 2] = 1
    result = TASK.result(MODEL, faces(vectors, labels))
    assert [score.value for score in result.scores] == [1.0, 1.0]
    assert result.class_values[0].values == (1.0, None, 1.0)


def test_every_unit_of_a_benchmark_has_prompts_and_none_is_in_both_lists() -> None:
    for name in catalogue.names():
        target = catalogue.card(name).target
        if isinstance(target, UnitsTarget):
            assert {f"AU{unit}" for unit in target.units} <= set(UNITS)
    texts = TASK.prompts()
    assert len(texts) == len(set(texts))
    assert all(len(present) == len(absent) for present, absent in sentences().values())


def test_a_dataset_of_faces_with_units_is_taken_and_one_without_is_refused(faces: str) -> None:
    assert TASK.prepare({"test": PackedSource(faces)}) == []
    vectors = torch.zeros(1, len(UNITS))
    with pytest.raises(ConfigError, match="has a label of an action unit, such as AU12"):
        TASK.result(MODEL, {"test": Features(("a",), vectors, vectors, ({"emotion": "joy"},))})


def test_a_model_is_scored_on_a_tiny_copy_of_a_benchmark_of_action_units(tiny_config: Config, tmp_path: Path) -> None:
    card = catalogue.card("faba_au")
    build(card, card.layouts[0], tmp_path)
    (result,) = evaluate(
        [BenchmarkCopy(card, tmp_path)], EvaluationConfig(), embedder_of(tiny_config), RankGroup(Rank(), "cpu", None)
    ).results
    assert (result.task, result.benchmark) == ("unit_detection", "faba_au")
    assert dict(zip(result.class_values[0].classes, result.class_values[0].samples, strict=True))["AU12"] == 1


def test_scores_that_do_not_exist_are_left_out_and_not_0() -> None:
    vectors = np.zeros((3, len(UNITS)))
    vectors[:, 0] = 1
    shown = TASK.result(MODEL, faces(vectors, [{"AU1": 1.0}] * 3))
    assert {score.name: score.value for score in shown.scores} == {"f1": 1.0}
    with pytest.raises(ConfigError, match="no face shows one of the action units AU1"):
        TASK.result(MODEL, faces(vectors, [{"AU1": 0.0}] * 3))


def test_only_faces_with_a_label_of_a_unit_count_and_an_empty_label_is_none() -> None:
    vectors = np.zeros((4, len(UNITS)))
    vectors[0, 0] = 1
    labels: list[dict[str, str | float]] = [{"AU1": 1.0}, {"AU1": 0.0}, {"AU1": "", "emotion": "joy"}, {}]
    result = TASK.result(MODEL, faces(vectors, labels))
    assert result.samples == 2
    assert [score.value for score in result.scores] == [1.0, 1.0]
    with pytest.raises(ConfigError, match="the label AU1 of 1 is 'weak', and the task needs numbers"):
        TASK.result(MODEL, faces(vectors, [{"AU1": 1.0}, {"AU1": "weak"}, {}, {}]))
    with pytest.raises(ConfigError, match="has a label of an action unit"):
        TASK.result(MODEL, faces(vectors, [{"AU1": ""}] * 4))
