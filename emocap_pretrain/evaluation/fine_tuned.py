"""Scores what the head of a fine-tuned model predicts: classes, and numbers such as valence and arousal.

The head was trained together with the image tower (`objective.labels`), so nothing is trained here, and the split
`test` suffices. The scores have the same names as in the tasks that train a probe on the pooled vectors of the tower.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.classification import LabelledRows, LearnsClasses, listed, scored
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.regression import check_numbers, numbers_of, rows_with_numbers, scores_of
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import NumberOutcomes
from emocap_pretrain.run_folder.results import TaskResult


@dataclass(frozen=True, slots=True)
class FineTunedClasses(LearnsClasses):
    """Implements the task `fine_tuned_classes`: it scores the classes that the head of a fine-tuned model predicts.

    The scores are UAR, WAR, macro-F1 and, if two classes occur, AUC. The task needs a model whose head predicts
    classes, and labelled samples in the split `test`.
    """

    name: ClassVar[str] = "fine_tuned_classes"
    about: ClassVar[str] = "scores the classes that the model's own head predicts; UAR, WAR, recall (needs a head)"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("uar",), ("war",), ("macro_f1",), ("auc",))
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test, label = features["test"], label_of_classes(embedder.model.labels, self.settings.label)
        assert label.classes, "the head of this label predicts classes"
        rows = LabelledRows.of(test, self.settings.label, label.classes)
        outputs = _outputs(embedder, test, [label.name])[label.name][rows.rows]
        return scored(self.name, "fine-tuned", rows, outputs.argmax(-1).numpy(), outputs.double().numpy())


@dataclass(frozen=True, slots=True)
class FineTunedNumbers:
    """Implements the task `fine_tuned_numbers`: it scores the numbers that the head of a fine-tuned model predicts.

    The scores are CCC, PCC, RMSE and SAGR of each number, and the mean CCC. The task needs a model whose head predicts
    the labels `evaluation.numbers`. At least two examples of the split `test` must have all of these labels. Examples
    that lack one of them are left out.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "fine_tuned_numbers"
    about: ClassVar[str] = "scores the numbers that the model's own head predicts; CCC, PCC, RMSE, SAGR (needs a head)"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("ccc",),)
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("numbers",)
    reads_texts: ClassVar[bool] = False
    parts: ClassVar[tuple[Part, ...]] = ()

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        check_numbers(sources.values(), self.settings.numbers, seconds=seconds)
        return ()

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test, names = features["test"], self.settings.numbers
        require_numbers(embedder.model.labels, names)
        rows = rows_with_numbers(test, names)
        if len(rows) < 2:
            raise ConfigError(f"evaluation.numbers: the split 'test' has fewer than two examples with {names}.")
        _, truth = numbers_of(test, names, rows)
        outputs = _outputs(embedder, test, names)
        predicted: Float[np.ndarray, "examples numbers"] = (
            torch.cat([outputs[name] for name in names], dim=-1)[torch.from_numpy(rows)].double().numpy()
        )
        true_columns, found_columns = (tuple(map(tuple, each.T.tolist())) for each in (truth, predicted))
        return TaskResult(
            task=self.name,
            samples=len(rows),
            scores=tuple(scores_of(predicted, truth, names, title="fine-tuned")),
            outcomes=(NumberOutcomes(tuple(rows.tolist()), tuple(names), true_columns, found_columns),),
        )


def label_of_classes(labels: Sequence[LabelConfig], name: str) -> LabelConfig:
    """Returns the label of a model's head whose outputs are compared with the evaluation label `name`.

    The label of the same name is returned. If the head has no label of this name, but only one label with classes, that
    label is returned, because a benchmark may name the label otherwise than the training data. Classes are compared by
    name.

    Args:
        labels: The labels that the head predicts. Labels with numbers are ignored.
        name: The name of the label in the evaluation.

    Raises:
        ConfigError: If the head predicts no classes, or if several of its labels have classes and none has this name.
    """
    found = [label for label in labels if label.classes]
    named = [label for label in found if label.name == name] or found
    if len(named) != 1:
        others = listed([label.name for label in found])
        there = f"has a head for the labels {others}" if found else "has no head that predicts classes"
        raise ConfigError(
            f"evaluation.label={name}: the model {there}; name one of its labels, or train a head with "
            "objective.labels."
        )
    return named[0]


def check_head_classes(
    labels: Sequence[LabelConfig], settings: EvaluationConfig, source: ExampleSource, *, seconds: float | None = None
) -> None:
    """Checks that the head of a model predicts the classes that the samples of `source` have.

    All samples are read, or only those that can be read within `seconds` seconds.

    Raises:
        ConfigError: If a sample has another class; further reasons are those of `label_of_classes`.
        ShardsError: If the data cannot be read.
    """
    known = label_of_classes(labels, settings.label).classes or ()
    found = source.label_values(settings.label, seconds=seconds)
    if unknown := sorted({*map(label_text, found.values)} - {*known}):
        raise ConfigError(
            f"evaluation.label={settings.label}: samples of {source.address} have {listed(unknown)}, which the head of "
            f"the model does not predict; it predicts {listed(known)}."
        )


def require_numbers(labels: Sequence[LabelConfig], names: Sequence[str]) -> None:
    """Checks that the head of a model predicts all of the numbers `names`.

    Args:
        labels: The labels that the head predicts.
        names: The names of the labels that are scored.

    Raises:
        ConfigError: If the head does not predict one of them.
    """
    found = [label.name for label in labels if not label.classes]
    if missing := [name for name in names if name not in found]:
        there = f"has a head for the numbers {listed(found)}" if found else "has no head that predicts numbers"
        raise ConfigError(
            f"evaluation.numbers: {listed(missing)} cannot be predicted, because the model {there}; name only its "
            "labels, or train a head with objective.labels."
        )


def _outputs(
    embedder: Embedder, features: Features, names: Iterable[str]
) -> dict[str, Float[Tensor, "examples outputs"]]:
    """Returns the outputs of the head for the labels `names`.

    Raises:
        DataError: If one of them is not finite. The largest of such outputs would be that of the first class.
    """
    outputs = embedder.head_outputs(features.pooled)
    for name in names:
        if not (is_finite := outputs[name].isfinite().all(1)).all():
            first = features.keys[int((~is_finite).nonzero()[0])]
            raise DataError(f"the outputs of the head for {first} are not finite: the weights may be damaged.")
    return outputs
