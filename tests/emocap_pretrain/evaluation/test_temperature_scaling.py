"""Tests the calibration error against its formula, and the temperature on classes drawn with a known temperature."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.calibration_error import (
    BINS,
    LARGEST_TEMPERATURE,
    calibration_error,
    fitted_temperature,
    log_loss,
)
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.temperature_scaling import TemperatureScaling

RANDOM = np.random.default_rng(0)


def drawn(examples: int, temperature: float) -> tuple[torch.Tensor, np.ndarray]:
    """Returns random logits of four classes, and for each example a class drawn from softmax(logits / temperature)."""
    logits = torch.from_numpy(RANDOM.normal(size=(examples, 4)) * 3)
    shares = (logits / temperature).softmax(1).numpy()
    return logits, np.array([RANDOM.choice(4, p=row) for row in shares])


def test_the_calibration_error_is_the_weighted_mean_over_bins() -> None:
    logits, truth = drawn(500, 2.0)
    probabilities = logits.softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    error = 0.0
    for number in range(BINS):
        inside = (confidence > number / BINS) & (confidence <= (number + 1) / BINS)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert error > 0.05
    assert calibration_error(logits, truth) == pytest.approx(error, abs=1e-6)


def test_the_fitted_temperature_is_the_one_with_which_the_classes_were_drawn() -> None:
    logits, truth = drawn(4000, 2.5)
    found = fitted_temperature(logits, truth)
    assert found == pytest.approx(2.5, rel=0.1)
    best = log_loss(logits / found, truth)
    assert all(log_loss(logits / (found * factor), truth) > best for factor in (0.97, 1.03))
    assert calibration_error(logits / found, truth) < calibration_error(logits, truth) / 2


def test_the_temperature_is_bounded_if_all_or_no_images_are_right() -> None:
    logits = torch.eye(3, dtype=torch.float64)
    # Below this temperature, the loss of logits of 1 rounds to 0.
    assert 1 / LARGEST_TEMPERATURE <= fitted_temperature(logits, np.arange(3)) < 0.05
    assert fitted_temperature(logits, np.array([1, 2, 0])) == pytest.approx(LARGEST_TEMPERATURE, rel=1e-3)


class Prompted:
    """Takes the place of an embedder. The vectors of three classes are orthogonal, and the scale is far too large."""

    model = SimpleNamespace(scale=40.0)

    def texts(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(3)[[("joy", "fear", "rage").index(text) for text in texts]]


def features(examples: int) -> Features:
    """Returns random vectors of images near the vectors of their classes, and wrong labels for about a quarter."""
    numbers = RANDOM.integers(3, size=examples)
    images = torch.nn.functional.normalize(torch.eye(3)[numbers] + torch.from_numpy(RANDOM.normal(size=(examples, 3))))
    labels = np.where(RANDOM.random(examples) < 0.25, (numbers + 1) % 3, numbers)
    keys = tuple(map(str, range(examples)))
    named = tuple({"emotion": ("joy", "fear", "rage")[label]} for label in labels)
    return Features(keys, images.float(), images.float(), named)


def test_the_task_chooses_on_the_validation_split_and_reports_both_errors_of_the_test_split() -> None:
    task = TemperatureScaling(
        EvaluationConfig(classes={name: (name,) for name in ("joy", "fear", "rage")}, templates=("{}",))
    )
    model: Any = Prompted()
    found = {"valid": features(300), "test": features(400)}
    result = task.result(model, found)  # pyright: ignore[reportArgumentType]
    scores = {score.name: score.value for score in result.scores}
    truth = np.array([("joy", "fear", "rage").index(str(each["emotion"])) for each in found["test"].labels])
    logits = 40.0 * found["test"].images
    assert scores["ece_before"] == pytest.approx(calibration_error(logits, truth), abs=1e-6)
    assert scores["ece"] == pytest.approx(calibration_error(logits / scores["temperature"], truth), abs=1e-6)
    assert scores["temperature"] > 5
    assert scores["ece"] < scores["ece_before"] / 2
    assert scores["log_loss"] < scores["log_loss_before"]
    assert result.samples == 400
    again = task.result(model, {**found, "valid": found["test"]})  # pyright: ignore[reportArgumentType]
    assert again.scores[-1].value != scores["temperature"]


def test_one_class_alone_is_refused() -> None:
    only = Features(("a",), torch.eye(3)[:1], torch.eye(3)[:1], ({"emotion": "joy"},))
    task = TemperatureScaling(EvaluationConfig(templates=("{}",)))
    model: Any = Prompted()
    with pytest.raises(ConfigError, match="needs at least two classes, and there is only joy"):
        task.result(model, {"valid": only, "test": only})
