"""Computes the losses of labels: cross-entropy for classes, and 1 - CCC or the squared error for numbers.

Every loss follows from a few sums over the rows of the global batch. Each rank computes the sums of its own rows for
all labels, and one collective adds up the sums of all ranks. So every rank gets the losses of the global batch, however
its rows are divided among the ranks. Rows without a target add nothing to the sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from emocap_kernels.distributed.ranks import ranks_of
from emocap_kernels.distributed.reductions import sum_of_parts
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import cross_entropy

from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.data.labels import MISSING_CLASS

# Keeps the CCC finite if all predictions and all targets are one number. It changes other values by less than rounding.
_SMALLEST_SPREAD = 1e-12

Counts = Mapping[str, Sequence[float]]
"""The number of training samples of each class, in the order of the classes, by the name of the label."""


@dataclass(frozen=True, slots=True)
class LabelResult:
    """Holds the loss and the metrics of one label, as float32 scalars that are equal on all ranks.

    Attributes:
        loss: The loss with its autograd graph, not yet multiplied by the weight of the label (`objective.labels`).
        metrics: The metrics, detached. Their names do not contain the name of the label.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LabelTerm(ABC):
    """Base class of the losses of a label, which are computed from the outputs of the head. A term has no state."""

    settings: LabelConfig

    @abstractmethod
    def sums(self, outputs: Float32[Tensor, "batch outputs"], targets: Tensor) -> Float64[Tensor, " sums"]:
        """Returns sums over this rank's rows, from which `result` computes the loss; zeros if there are no rows.

        The gradients of the loss pass through the sums. The sums of several ranks are added up element by element.
        """

    @abstractmethod
    def result(self, sums: Float64[Tensor, " sums"]) -> LabelResult:
        """Returns the loss and the metrics from the sums over the rows of all ranks.

        If no row has a target, the loss is 0.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Returns a description of the loss in a few words, for the plan of a run (`dry_run/plan.py`)."""


@dataclass(frozen=True, slots=True)
class ClassTerm(LabelTerm):
    """Computes the cross-entropy of the labelled rows of the global batch.

    Class weights, label smoothing and the weighted mean are those of torch's `cross_entropy` with reduction="mean": the
    sum over the rows is divided by the sum of the weights of their classes.

    Attributes:
        weights: The weight of each class; None weighs all rows equally.
    """

    weights: tuple[float, ...] | None = None

    def sums(
        self, outputs: Float32[Tensor, "batch classes"], targets: Int64[Tensor, " batch"]
    ) -> Float64[Tensor, " sums"]:
        weights = outputs.new_ones(outputs.shape[-1]) if self.weights is None else outputs.new_tensor(self.weights)
        losses = cross_entropy(
            outputs,
            targets,
            weight=weights,
            ignore_index=MISSING_CLASS,
            reduction="none",
            label_smoothing=self.settings.smoothing,
        )
        is_known = targets != MISSING_CLASS
        weight = weights[targets.clamp(min=0)].where(is_known, 0.0)
        is_right = (outputs.detach().argmax(-1) == targets) & is_known
        return torch.stack([each.double().sum() for each in (losses, weight, is_known, is_right)])

    def result(self, sums: Float64[Tensor, " sums"]) -> LabelResult:
        losses, weight, known, right = sums.unbind()
        loss = losses / weight.detach().clamp(min=torch.finfo(torch.float64).tiny)
        # The recall of the batch, weighted by the frequency of the classes (WAR).
        return _result(loss, accuracy=right / known.clamp(min=1), labelled=known)

    def __str__(self) -> str:
        balance = "" if self.settings.balance == "none" else f", balanced by {self.settings.balance} numbers"
        return f"cross-entropy of {self.settings.outputs} classes{balance}"


@dataclass(frozen=True, slots=True)
class NumberTerm(LabelTerm):
    """Computes 1 - CCC or the mean squared error of predicted numbers p and true numbers y.

    The concordance correlation coefficient (CCC, Lin 1989) is 2 cov(p, y) / (var(p) + var(y) + (mean(p) - mean(y))^2),
    where variances and covariance are divided by n and not by n - 1. It is a property of the whole batch and not a mean
    over its rows, so the sums of all ranks are needed before any gradient is known.
    """

    def sums(
        self, outputs: Float32[Tensor, "batch one"], targets: Float32[Tensor, " batch"]
    ) -> Float64[Tensor, " sums"]:
        is_known = ~targets.isnan()
        # float64, because a variance is a small difference of these sums.
        predicted, truth = (each.double().where(is_known, 0.0) for each in (outputs.squeeze(-1), targets))
        columns = (is_known.double(), predicted, truth, predicted**2, truth**2, predicted * truth)
        return torch.stack([each.sum() for each in columns])

    def result(self, sums: Float64[Tensor, " sums"]) -> LabelResult:
        known, *others = sums.unbind()
        # Means over the labelled rows.
        predicted, truth, predicted_squared, truth_squared, product = (each / known.clamp(min=1) for each in others)
        squared_error = predicted_squared - 2 * product + truth_squared
        spread = predicted_squared - predicted**2 + truth_squared - truth**2 + (predicted - truth) ** 2
        ccc = 2 * (product - predicted * truth) / (spread + _SMALLEST_SPREAD)
        loss = squared_error if self.settings.chosen_loss == "mse" else torch.where(known > 0, 1 - ccc, 0.0 * ccc)
        return _result(loss, ccc=ccc, rmse=squared_error.clamp(min=0).sqrt(), labelled=known)

    def __str__(self) -> str:
        return {"mse": "mean squared error"}.get(self.settings.chosen_loss, "1 - CCC of the global batch")


def label_terms(labels: Sequence[LabelConfig], counts: Counts) -> tuple[LabelTerm, ...]:
    """Returns one term for each label, in the order of the labels.

    Args:
        labels: The settings of the labels.
        counts: The number of training samples of each class, for the labels whose classes are balanced. The term of a
            label that is missing here weighs all classes equally, so only a caller that computes no loss may leave out
            a label with balanced classes.
    """
    return tuple(
        ClassTerm(label, class_weights(label, counts[label.name]) if label.name in counts else None)
        if label.classes
        else NumberTerm(label)
        for label in labels
    )


def label_results(
    terms: Sequence[LabelTerm],
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    group: ProcessGroup | None,
) -> list[LabelResult]:
    """Returns the result of each term for the global batch. This is a collective, unless there are no terms.

    After each rank's backward pass through its results, the mean of a parameter's gradients over the ranks is the
    gradient of the loss of the global batch.

    Args:
        terms: The terms, equal on all ranks.
        outputs: The outputs of the head for this rank's rows, by the name of the label.
        targets: The targets of this rank's rows, by the name of the label (`Batch.labels`).
        group: The ranks whose rows form the global batch; None if this process is alone.
    """
    if not terms:
        return []
    mine = [term.sums(outputs[term.settings.name], targets[term.settings.name]) for term in terms]
    parts = torch.cat(mine)
    everyone = sum_of_parts(parts, ranks_of(group, parts.device))
    return [term.result(sums) for term, sums in zip(terms, everyone.split([len(each) for each in mine]), strict=True)]


def class_weights(label: LabelConfig, counts: Sequence[float]) -> tuple[float, ...] | None:
    """Returns the weight of each class, with a mean of 1 over the classes; None if the classes are not balanced.

    With `inverse`, the weight of a class is proportional to 1 / n, where n is the number of its training samples. With
    `effective`, it is proportional to (1 - beta) / (1 - beta^n), the inverse of the effective number of samples (Cui et
    al. 2019, "Class-Balanced Loss Based on Effective Number of Samples"). With beta = 0 all weights are 1; if beta
    approaches 1, the weights approach those of `inverse`.

    Args:
        label: The settings of the label.
        counts: The number of training samples of each class; above 0 if the classes are balanced.
    """
    if label.balance == "none":
        return None
    beta = label.beta
    raw = [1 / count if label.balance == "inverse" else (1 - beta) / (1 - beta**count) for count in counts]
    return tuple(len(raw) * each / sum(raw) for each in raw)


def _result(loss: Tensor, **metrics: Tensor) -> LabelResult:
    found = {"loss": loss, **metrics}
    return LabelResult(loss.float(), {name: each.detach().float() for name, each in found.items()})
