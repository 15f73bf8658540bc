"""Tests the regression of numbers: its scores against their formulas, and its choices against scikit-learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.outcome_scores import metrics_of
from emocap_pretrain.evaluation.regression import scores_of
from emocap_pretrain.evaluation.ridge_regression import STRENGTHS, RidgeRegression
from emocap_pretrain.evaluation.task import SplitName

NO_MODEL: Any = None
SETTINGS = EvaluationConfig(url="faces")


def split(samples: int, seed: int, *, lacking: int = 0) -> Features:
    random = np.random.default_rng(seed)
    pooled = random.normal(size=(samples, 6)).astype(np.float32)
    weights = np.random.default_rng(0).normal(size=(6, 2))
    numbers = np.tanh(pooled @ weights / 2 + random.normal(size=(samples, 2)) / 2)
    labels = [{"valence": float(valence), "arousal": float(arousal)} for valence, arousal in numbers]
    for row in range(lacking):
        del labels[row]["arousal"]
    vectors = torch.from_numpy(pooled)
    return Features(tuple(map(str, range(samples))), vectors, vectors, tuple(labels))


def ccc(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Returns Lin's coefficient with the variances of a sample, as torchmetrics computes it."""
    covariance = np.cov(predicted, truth)
    return 2 * covariance[0, 1] / (covariance.trace() + (predicted.mean() - truth.mean()) ** 2)


def population_ccc(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Returns Lin's coefficient with the variances of the population, as EmoNet computes it."""
    covariance = np.cov(predicted, truth, ddof=0)
    return 2 * covariance[0, 1] / (covariance.trace() + (predicted.mean() - truth.mean()) ** 2)


@given(st.integers(3, 40), st.integers(0, 2**31))
def test_each_score_is_that_of_its_formula(samples: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.uniform(-1, 1, (samples, 2))
    predicted = 0.5 * truth + random.uniform(-1, 1, (samples, 2))
    mean = np.array([0.1, -0.2])
    found = {
        score.name: score for score in scores_of(predicted, truth, ("valence", "arousal"), title="ridge", mean=mean)
    }
    for column, name in enumerate(("valence", "arousal")):
        ours, theirs = predicted[:, column], truth[:, column]
        assert found[f"{name}_ccc"].value == pytest.approx(ccc(ours, theirs), abs=1e-6)
        assert abs(found[f"{name}_ccc"].value - population_ccc(ours, theirs)) < 1 / samples
        assert found[f"{name}_pcc"].value == pytest.approx(np.corrcoef(ours, theirs)[0, 1], abs=1e-6)
        assert found[f"{name}_rmse"].value == pytest.approx(np.sqrt(((ours - theirs) ** 2).mean()), abs=1e-6)
        assert found[f"{name}_sagr"].value == pytest.approx((np.sign(ours) == np.sign(theirs)).mean(), abs=1e-6)
        baseline = found[f"{name}_rmse"].baseline
        assert baseline is not None
        assert baseline.value == pytest.approx(np.sqrt(((mean[column] - theirs) ** 2).mean()), abs=1e-6)
    each = [ccc(predicted[:, column], truth[:, column]) for column in range(2)]
    assert found["ccc"].value == pytest.approx(np.mean(each), abs=1e-6)


def test_the_strength_is_the_best_on_the_validation_split() -> None:
    features: dict[SplitName, Features] = {
        "train": split(60, 1, lacking=3),
        "valid": split(40, 2),
        "test": split(50, 3, lacking=2),
    }

    def arrays(found: Features) -> tuple[np.ndarray, np.ndarray]:
        rows = [row for row, labels in enumerate(found.labels) if len(labels) == 2]
        numbers = [[found.labels[row]["valence"], found.labels[row]["arousal"]] for row in rows]
        return found.pooled.double().numpy()[rows], np.array(numbers)

    (train, truth), (valid, wanted), (test, last) = map(arrays, features.values())
    scaler = StandardScaler().fit(train)

    def mean_ccc(strength: float, vectors: np.ndarray, numbers: np.ndarray) -> float:
        predicted = Ridge(alpha=strength).fit(scaler.transform(train), truth).predict(scaler.transform(vectors))
        return float(np.mean([ccc(predicted[:, column], numbers[:, column]) for column in range(2)]))

    best = max(STRENGTHS, key=lambda strength: mean_ccc(strength, valid, wanted))
    result = RidgeRegression(SETTINGS).result(NO_MODEL, features)
    found = {score.name: score.value for score in result.scores}
    assert result.samples == 48
    assert found["strength"] == best
    assert found["ccc"] == pytest.approx(mean_ccc(best, test, last), abs=1e-6)


def test_a_constant_prediction_has_no_correlation() -> None:
    truth = np.array([[-0.5], [0.5], [0.25]])
    found = {each.name: each.value for each in scores_of(np.full((3, 1), 0.2), truth, ("valence",), title="ridge")}
    assert found["ccc"] == found["valence_ccc"] == found["valence_pcc"] == 0
    assert found["valence_sagr"] == pytest.approx(2 / 3)


def test_labels_with_texts_are_refused_before_training(faces: str) -> None:
    source = PackedSource(faces)
    for name, there in (("emotion", "the value "), ("mood", "no value of this label")):
        settings = EvaluationConfig(url=faces, numbers=(name,))
        with pytest.raises(ConfigError, match=rf"^evaluation\.numbers={name}: .* has {there}"):
            RidgeRegression(settings).prepare({"train": source, "valid": source, "test": source})


def test_a_split_without_numbers_is_named() -> None:
    features: dict[SplitName, Features] = {"train": split(9, 1), "valid": split(9, 2, lacking=9), "test": split(9, 3)}
    with pytest.raises(ConfigError, match="the split 'valid' has fewer than two examples"):
        RidgeRegression(SETTINGS).result(NO_MODEL, features)


def test_a_label_may_be_written_as_its_table_has_it() -> None:
    """Names of metrics have lower-case letters alone, and outcomes give the scores the same names."""
    names = ("Valence", "arousal (SAM)")
    features: dict[SplitName, Features] = {}
    for number, name in enumerate(("train", "valid", "test")):
        found = split(60, number)
        labels = tuple({names[0]: each["valence"], names[1]: each["arousal"]} for each in found.labels)
        features[name] = replace(found, labels=labels)  # pyright: ignore[reportArgumentType]
    result = RidgeRegression(SETTINGS.model_copy(update={"numbers": names})).result(NO_MODEL, features)
    stated = {score.name: score for score in result.scores}
    assert stated["valence_ccc"].title == "Valence, CCC"
    assert "arousal__sam__rmse" in stated
    for name, metric in metrics_of(result.outcomes[0]).items():
        assert metric(np.ones((1, 60)))[0] == pytest.approx(stated[name].value, abs=1e-6), name


def test_numbers_whose_metrics_would_have_one_name_are_refused_before_they_are_read(faces: str) -> None:
    with pytest.raises(ConfigError, match="Valence and valence would have scores of the same name"):
        RidgeRegression(EvaluationConfig(url=faces, numbers=("Valence", "valence"))).prepare(
            {"test": PackedSource(faces)}
        )
