"""Fits the temperature of the softmax over prompted classes on the split `valid`, and measures its effect on `test`.

This task is separate from the classification by prompts alone, because it uses the labels of `valid` to choose the
temperature. The classification uses labels only to compute its scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.calibration_error import (
    calibration_error,
    fitted_temperature,
    log_loss,
    probabilities,
)
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.prompted import ClassifiesByPrompts
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.classes import class_cosines
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Baseline, Domain, Score, TaskResult


@dataclass(frozen=True, slots=True)
class TemperatureScaling(ClassifiesByPrompts):
    """Implements the task `temperature_scaling`: scores are calibration error and log loss, before and after the fit.

    The logits are the cosines of images and classes times the learned scale of the model. The fitted temperature
    divides the logits of the split `test`. Before the fit the temperature is 1.
    """

    name: ClassVar[str] = "temperature_scaling"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("ece", "ece_before"), ("log_loss", "log_loss_before"))
    splits: ClassVar[tuple[SplitName, ...]] = ("valid", "test")
    about: ClassVar[str] = "fits the temperature of prompted classes on --valid; calibration error before and after"

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test, valid = self.labelled(features, "test"), self.labelled(features, "valid")
        if len(test.classes) < 2:
            raise ConfigError(f"{self.name} needs at least two classes, and there is only {', '.join(test.classes)}.")
        columns, ensemble = self.columns(embedder, test.classes), self.settings.ensemble
        chosen, logits = (
            embedder.model.scale * class_cosines(each.images, columns, ensemble) for each in (valid, test)
        )
        temperature = fitted_temperature(chosen, valid.rows.truth)
        truth, scaled = test.rows.truth, logits / temperature
        before = calibration_error(logits, truth), log_loss(logits, truth)
        rows, names = test.rows.rows, test.rows.classes
        return TaskResult(
            task=self.name,
            samples=len(truth),
            scores=(
                Score("ece", "calibration error, fitted", calibration_error(scaled, truth), lower_is_better=True),
                Score("ece_before", "calibration error, model's scale", before[0], lower_is_better=True),
                Score("log_loss", "log loss, fitted", log_loss(scaled, truth), is_share=False, lower_is_better=True),
                Score("log_loss_before", "log loss, model's scale", before[1], is_share=False, lower_is_better=True),
                Score("temperature", "fitted temperature", temperature, Baseline("model", 1.0), is_share=False),
            ),
            domain=Domain(),
            outcomes=(
                *probabilities(scaled, truth, rows, names, with_losses=True),
                *probabilities(logits, truth, rows, names, with_losses=True, suffix="_before"),
            ),
        )
