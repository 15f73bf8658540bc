"""Scores a trained model on a split of FER+: with prompts, and with a linear probe on the features of its image tower.

A probe is a logistic regression on frozen features. Its regularization is chosen on the split `valid`, and the split
`test` is scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.evaluation.classification import labelled
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.evaluation.features import Extraction, joined
from emocap_pretrain.evaluation.probe import fitted
from emocap_pretrain.evaluation.zero_shot import ZeroShot
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank

LABEL = "emotion"
ALONE = RankGroup(Rank(), "cpu", None)
CHOICES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # Inverse strengths of the regularization; the first one regularizes most.


@dataclass(frozen=True, slots=True)
class Recalls:
    """Holds the unweighted average recall (UAR, the mean over classes) and the weighted one (WAR, the accuracy)."""

    uar: float
    war: float

    @classmethod
    def of(cls, truth: Sequence[str], predicted: Sequence[str]) -> "Recalls":
        right = np.asarray(truth) == np.asarray(predicted)
        classes = [right[np.asarray(truth) == name].mean() for name in sorted(set(truth))]
        return cls(float(np.mean(classes)), float(right.mean()))


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Holds the labels of the labelled faces of a split, and their pooled features from the image tower."""

    values: Float[np.ndarray, "faces width"]
    labels: list[str]


def prompted(embedder: Embedder, settings: EvaluationConfig) -> Recalls:
    """Returns the recalls of classification by prompts. `settings` names the split, the classes and the templates."""
    chosen = settings.model_copy(update={"tasks": (ZeroShot.name,)})
    (result,) = tasks.evaluate(chosen, embedder, ALONE, url="")
    return Recalls(result.metrics()["zero_shot/uar"], result.metrics()["zero_shot/war"])


def features(embedder: Embedder, url: str, *, batch: int = 64) -> LabelledFeatures:
    """Returns the features of the labelled faces of a split; they are not projected into the shared space."""
    batches = Extraction(embedder, batch).collect(PackedSource(url), ALONE)
    found = joined(batches or [], url)
    rows, labels = labelled(found, LABEL)
    return LabelledFeatures(found.pooled[rows].numpy(), labels)


def probe(train: LabelledFeatures, valid: LabelledFeatures, test: LabelledFeatures) -> tuple[Recalls, float]:
    """Returns the recalls of the probe on the split `test`, and the inverse strength that was chosen on `valid`."""
    names = sorted(set(train.labels))
    numbers = {name: number for number, name in enumerate(names)}
    fit, choose = ((each.values, np.array([numbers[label] for label in each.labels])) for each in (train, valid))
    probe = fitted(fit, choose, CHOICES)
    predicted = [names[number] for number in probe.predicted(test.values)]
    return Recalls.of(test.labels, predicted), probe.inverse_strength
