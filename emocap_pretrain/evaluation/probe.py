"""Trains a probe: a logistic regression on the vectors of an image tower. The weights of the tower do not change.

scikit-learn and torchmetrics are imported within functions here and in the tasks, because their imports take seconds
and only rank 0 needs them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.confusion import Confusion

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

INVERSE_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # The first one regularizes most.
ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Probe:
    """Holds a trained probe, with the inverse strength of its regularization (scikit-learn's C)."""

    scaler: "StandardScaler"
    regression: "LogisticRegression"
    inverse_strength: float

    def predicted(self, vectors: Float[np.ndarray, "examples width"]) -> Int[np.ndarray, " examples"]:
        """Returns the number of the class of each vector."""
        return np.asarray(self.regression.predict(self.scaler.transform(vectors)))

    def scores(
        self, vectors: Float[np.ndarray, "examples width"], classes: int
    ) -> Float[np.ndarray, "examples {classes}"]:
        """Returns the log probability of each class for each vector; NaN for a class without training examples.

        `classes` is the number of classes.
        """
        found = np.full((len(vectors), classes), np.nan)
        found[:, self.regression.classes_] = self.regression.predict_log_proba(self.scaler.transform(vectors))
        return found


def fitted(
    train: tuple[Float[np.ndarray, "train width"], Int[np.ndarray, " train"]],
    valid: tuple[Float[np.ndarray, "valid width"], Int[np.ndarray, " valid"]],
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
) -> Probe:
    """Trains a probe with each strength, and returns the one with the highest UAR on the split `valid`.

    If several probes have the same UAR, the one with the strongest regularization is returned. Every class has the same
    weight in training, because UAR is the mean over the classes.

    Args:
        train: Vectors, and the numbers of their classes.
        valid: Vectors, and the numbers of their classes.
        inverse_strengths: The inverse strengths of the regularization, in ascending order.

    Raises:
        ConfigError: If the training examples belong to a single class.
    """
    if len(np.unique(train[1])) < 2:
        raise ConfigError("a probe needs training examples of at least two classes; all have the same class.")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    vectors, choices = scaler.transform(train[0]), scaler.transform(valid[0])
    numbers = range(max(train[1].max(), valid[1].max()) + 1)
    # Each fit begins at the result of the stronger regularization before it, which saves most iterations.
    regression = LogisticRegression(class_weight="balanced", max_iter=ITERATIONS, warm_start=True)
    best, found = -1.0, None
    for strength in inverse_strengths:
        regression.set_params(C=strength).fit(vectors, train[1])
        predicted = np.asarray(regression.predict(choices))
        uar = Confusion.of(tuple(map(str, numbers)), valid[1], predicted).uar
        if uar > best:
            best, found = uar, Probe(scaler, copy.deepcopy(regression), strength)
    assert found is not None
    return found
