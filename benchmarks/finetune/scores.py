"""Scores a trained model on a split of FER+: with prompts, and with a linear probe on the features of its image tower.

A probe is a logistic regression on frozen features. Its regularization is chosen on the split `valid`, and the split
`test` is scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.evaluation.task import Share
from emocap_pretrain.evaluation.zero_shot import ZeroShot
from emocap_pretrain.inference.embedder import Embedder

LABEL = "emotion"
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
class Features:
    """Holds the labels of the labelled faces of a split, and their pooled features from the image tower."""

    values: Float[np.ndarray, "faces width"]
    labels: list[str]


def prompted(embedder: Embedder, settings: EvaluationConfig) -> Recalls:
    """Returns the recalls of classification by prompts. `settings` names the split, the classes and the templates."""
    task = ZeroShot(settings)
    scores = task.result(embedder, list(task.run(embedder, Share()))).metrics()
    return Recalls(scores["zero_shot/uar"], scores["zero_shot/war"])


def features(embedder: Embedder, url: str, *, batch: int = 64) -> Features:
    """Returns the features of the labelled faces of a split; they are not projected into the shared space."""
    values, labels = [], []
    for samples in Share().batches(url, batch, embedder.cropped):
        labelled = [sample for sample in samples if sample.labels.get(LABEL, "") != ""]
        if labelled:
            images = torch.from_numpy(np.stack([sample.image.transpose(2, 0, 1) for sample in labelled]))
            with torch.inference_mode():
                values.append(embedder.model.image.encode_image(images)[0].float().numpy())
            labels += [str(sample.labels[LABEL]) for sample in labelled]
    return Features(np.concatenate(values), labels)


def probe(train: Features, valid: Features, test: Features) -> tuple[Recalls, float]:
    """Returns the recalls of the probe on the split `test`, and the inverse strength that was chosen on `valid`."""
    scaler = StandardScaler().fit(train.values)
    # Every class counts the same, because UAR is the mean over classes and neutral faces are a third of FER+. Each fit
    # begins at the result of the one before it, which was regularized more strongly; this saves most iterations.
    regression = LogisticRegression(class_weight="balanced", max_iter=1000, warm_start=True)
    best, chosen, predicted = -1.0, CHOICES[0], np.array([])
    for choice in CHOICES:
        regression.set_params(C=choice).fit(scaler.transform(train.values), train.labels)
        uar = Recalls.of(valid.labels, list(regression.predict(scaler.transform(valid.values)))).uar
        if uar > best:
            best, chosen, predicted = uar, choice, regression.predict(scaler.transform(test.values))
    return Recalls.of(test.labels, list(predicted)), chosen
