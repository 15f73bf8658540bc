"""Measures how well the softmax over prompted classes is calibrated as probabilities, and fits its temperature."""

import math
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15
# The fitted temperature is between the inverse of this number and this number, also if all images are right.
LARGEST_TEMPERATURE = 100.0

Logits: TypeAlias = Float[Tensor, "examples classes"]


def calibration_error(logits: Logits, truth: Int[np.ndarray, " examples"]) -> float:
    """Returns the expected calibration error (ECE) of the softmax of logits, in [0, 1].

    The examples are divided into `BINS` bins of equal width by the probability of their predicted class. The ECE is
    the mean over the bins of the absolute difference (norm "l1") between the accuracy and the mean probability in the
    bin, weighted by the number of examples in it (Guo et al. 2017). There must be at least two classes.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    # float64: a probability beside the edge of a bin must not change its bin with the device.
    probabilities, labels = logits.double().softmax(1), torch.from_numpy(truth)
    return float(
        multiclass_calibration_error(probabilities, labels, num_classes=logits.shape[1], n_bins=BINS, norm="l1")
    )


def log_loss(logits: Logits, truth: Int[np.ndarray, " examples"]) -> float:
    """Returns the mean negative log-likelihood of the true classes, in nats."""
    return float(cross_entropy(logits.double(), torch.from_numpy(truth)))


def fitted_temperature(logits: Logits, truth: Int[np.ndarray, " examples"]) -> float:
    """Returns the temperature by which the logits must be divided so that their log loss is lowest (Guo et al. 2017).

    The temperature lies between the inverse of `LARGEST_TEMPERATURE` and `LARGEST_TEMPERATURE`. The loss is convex in
    the inverse of the temperature, so it has one minimum.
    """
    from scipy.optimize import minimize_scalar

    def loss(logarithm: float) -> float:
        return log_loss(logits / math.exp(logarithm), truth)

    edge = math.log(LARGEST_TEMPERATURE)
    return math.exp(minimize_scalar(loss, bounds=(-edge, edge), method="bounded").x)
