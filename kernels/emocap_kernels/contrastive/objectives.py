"""Defines the objectives of the global loss, each of which turns the scores of an anchor into a loss.

An objective is an object without state. Its formula, `anchor_losses`, is the specification, and the backend `reference`
differentiates it with autograd. The other backends compute scores tile by tile, in one of two ways:

- `infonce` and `mil_nce` need the sum over all candidates before any gradient is known. Therefore the scores are
  computed twice, in forward and again in backward (module `chunked`).
- For an objective that is a sum over pairs (`PairwiseObjective`), the gradient of a tile follows from the scores of
  this tile alone. Therefore the scores and their gradient are computed together, in forward (module `pairwise`).

A new objective with only a formula runs with `backend="reference"`. If it also has the methods `losses` and `gradient`
for a tile, it runs in bounded memory as well. Fused kernels are optional. Decision 26 gives the reasons, and
docs/extend/objective.md shows step by step how to add an objective.

Example:
    ```python
    class SquaredDistance(ContrastiveObjective):
        name = "squared_distance"

        def anchor_losses(self, scores: DenseScores) -> Tensor:
            wanted = scores.positive.to(scores.score.dtype)
            return ((scores.score - wanted) ** 2).masked_fill(scores.dropped, 0.0).sum(1)


    contrastive_loss(image, text, 1.0, objective=SquaredDistance())
    ```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from emocap_kernels import checks
from emocap_kernels.targets import Targets


@dataclass(frozen=True, slots=True)
class DenseScores:
    """Holds all scores of one direction. The rows are the anchors of this direction.

    A pair is never both positive and dropped. The diagonal has the pairs of image and text of the same sample, and
    every one of them is a positive.

    Attributes:
        score: [anchors, candidates], scale and bias included.
        positive: Bool [anchors, candidates], True for positives.
        dropped: Bool [anchors, candidates], True for pairs that are excluded: they are neither positives nor negatives.
        teacher: [anchors, candidates], the scores of the teacher; None without a teacher.
    """

    score: Tensor
    positive: Tensor
    dropped: Tensor
    teacher: Tensor | None

    def log_probability(self) -> Tensor:
        """Returns the log-softmax over the candidates that are not excluded, [anchors, candidates]."""
        return self.score.masked_fill(self.dropped, float("-inf")).log_softmax(1)


@dataclass(frozen=True, slots=True)
class TeacherTile:
    """Holds the teacher's scores of a tile, and two log-sum-exps of each anchor over all its candidates.

    One log-sum-exp is that of the student's scores (the student is the model that is trained), the other one is that of
    the teacher's scores.

    Attributes:
        score: [images, texts], the scores of the teacher.
        image_log_sums: (student, teacher), the log-sum-exps of the image anchors, [images, 1] each.
        text_log_sums: (student, teacher), the log-sum-exps of the text anchors, [texts] each.
    """

    score: Tensor
    image_log_sums: tuple[Tensor, Tensor]
    text_log_sums: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Tile:
    """Holds the scores of some images with some texts.

    Both directions use the same scores: a row holds the scores of an image anchor, and a column those of a text anchor.
    `targets` says for each direction which pairs are positives and which are excluded. `targets.row_candidates(score)`
    and `targets.column_candidates(score)` return the scores with -inf at the excluded pairs of one direction.

    Attributes:
        score: [images, texts], scale and bias included.
        targets: The positives and the excluded pairs.
        teacher: The teacher's scores of the tile; None without a teacher.
    """

    score: Tensor
    targets: Targets
    teacher: TeacherTile | None


class ContrastiveObjective(ABC):
    """Base class of objectives. A subclass computes the loss of each anchor from its scores.

    The loss of a batch is the mean over the anchors of a direction, averaged over both directions. An objective has no
    state, so one object may serve several losses at once.

    Attributes:
        name: The name by which `contrastive_loss` selects the objective. All ranks must use the same objective, and
            they compare this name.
        has_bias: Whether a bias is added to all scores. In a softmax it would cancel.
        has_teacher: Whether the softmax of a teacher's scores replaces the positives.
        has_kernels: Whether fused kernels for the objective exist.
    """

    name: ClassVar[str]
    has_bias: ClassVar[bool] = False
    has_teacher: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False

    @abstractmethod
    def anchor_losses(self, scores: DenseScores) -> Tensor:
        """Returns the loss of each anchor, [anchors].

        The backend `reference` calls this method once for each direction, and differentiates it with autograd.
        """
        ...


@runtime_checkable
class PairwiseObjective(Protocol):
    """Describes an objective whose loss is a sum over pairs of an image and a text.

    Therefore a `Tile` alone determines what its pairs add to the losses, and the gradient with respect to the scores of
    the tile. A `ContrastiveObjective` that has the methods `losses` and `gradient` is such an objective. It need not
    inherit from this class.

    For each tile, `losses` is called before `gradient`. `losses` must not change the scores, because `gradient` reads
    them.
    """

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Returns two sums over the tile, 0-dim float64: the losses of the image anchors, and of the text anchors."""
        ...

    def gradient(self, tile: Tile) -> Tensor:
        """Returns the gradient of the summed losses of both directions with respect to the scores, [images, texts]."""
        ...


@dataclass(frozen=True, slots=True)
class InfoNCE(ContrastiveObjective):
    r"""Computes the mean negative log-probability of an anchor's positives.

    The loss is that of van den Oord et al. 2018, with several positives as in Khosla et al. 2020. For anchor i with the
    scores \(S_{ij}\) and the positives \(P_i\) it is

    \(\log\sum_j e^{S_{ij}} - \frac1{|P_i|} \sum_{j \in P_i} S_{ij}\)
    """

    name = "infonce"
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        positive = scores.positive
        return -(scores.log_probability().where(positive, 0.0).sum(1) / positive.sum(1))


@dataclass(frozen=True, slots=True)
class MilNCE(ContrastiveObjective):
    r"""Computes the negative log of the summed probability of an anchor's positives (Miech et al. 2020).

    For anchor i with the scores \(S_{ij}\) and the positives \(P_i\) it is

    \(\log\sum_j e^{S_{ij}} - \log\sum_{j \in P_i} e^{S_{ij}}\)
    """

    name = "mil_nce"
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        return -scores.log_probability().masked_fill(~scores.positive, float("-inf")).logsumexp(1)


@dataclass(frozen=True, slots=True)
class Sigmoid(ContrastiveObjective):
    r"""Classifies every pair as positive or not (SigLIP, Zhai et al. 2023).

    With \(t_{ij} = S_{ij} + \mathrm{bias}\), the loss of anchor i is \(-\sum_j \log\sigma(\pm t_{ij})\), with plus for
    its positives \(P_i\) and minus for other pairs. It equals
    \(\sum_j \log(1 + e^{t_{ij}}) - \sum_{j \in P_i} t_{ij}\). The gradient with respect to \(t_{ij}\) is
    \(\sigma(t_{ij}) - [j \in P_i]\), where the bracket is 1 for positives and 0 for other pairs.
    """

    name = "sigmoid"
    has_bias = True
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        signed = torch.where(scores.positive, scores.score, -scores.score)
        return -logsigmoid(signed).masked_fill(scores.dropped, 0.0).sum(1)

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        score, targets = tile.score, tile.targets
        # An excluded pair has the score -inf, whose softplus and sigmoid are 0.
        by_row, by_column = targets.row_candidates(score), targets.column_candidates(score)
        image = softplus(by_row).sum(1).double().sum()
        # Without excluded pairs both are `score` itself, and the sum over all pairs is the same.
        text = image if by_row is by_column else softplus(by_column).sum(1).double().sum()
        return image - targets.row_sums(score).double().sum(), text - targets.column_sums(score).double().sum()

    def gradient(self, tile: Tile) -> Tensor:
        score, targets = tile.score, tile.targets
        gradient = targets.row_candidates(score).sigmoid()
        gradient += targets.column_candidates(score).sigmoid()
        ones = score.new_ones(())
        targets.subtract_at_positives_(gradient, ones.expand(score.shape[0]), ones.expand(score.shape[1]))
        return gradient


@dataclass(frozen=True, slots=True)
class Soft(ContrastiveObjective):
    r"""Computes the KL divergence \(\mathrm{KL}(T_i \| p_i)\) of two softmax distributions (distillation).

    \(T_i\) is the softmax of the teacher's scores, and is the target. \(p_i\) is the softmax of the scores \(S_i\). The
    loss of anchor i is \(\sum_j T_{ij} (\log T_{ij} - \log p_{ij})\), and its gradient with respect to \(S_{ij}\) is
    \(p_{ij} - T_{ij}\). The loss is the cross-entropy of \(T_i\) and \(p_i\) minus the entropy of \(T_i\). This entropy
    is constant, so it does not change the gradient.
    """

    name = "soft"
    has_teacher = True
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        assert scores.teacher is not None
        target = scores.teacher.log_softmax(1)
        return (target.exp() * (target - scores.log_probability())).sum(1)

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        assert tile.teacher is not None
        sums: list[Tensor] = []
        for log_sum, teacher_log_sum in (tile.teacher.image_log_sums, tile.teacher.text_log_sums):
            target = tile.teacher.score - teacher_log_sum
            difference = target - (tile.score - log_sum)
            sums.append(difference.mul_(target.exp_()).sum(1).double().sum())
        return sums[0], sums[1]

    def gradient(self, tile: Tile) -> Tensor:
        assert tile.teacher is not None
        gradient = torch.zeros_like(tile.score)
        for log_sum, teacher_log_sum in (tile.teacher.image_log_sums, tile.teacher.text_log_sums):
            gradient += (tile.score - log_sum).exp_()
            gradient -= (tile.teacher.score - teacher_log_sum).exp_()
        return gradient


ObjectiveName = Literal["infonce", "mil_nce", "sigmoid", "soft"]
# A caller passes a name, or an object of the caller's own class.
Objective = ObjectiveName | ContrastiveObjective
# `Kind` in emocap_pretrain/config/objective.py repeats these names without importing torch. A test compares them.
OBJECTIVES: dict[str, ContrastiveObjective] = {each.name: each for each in (InfoNCE(), MilNCE(), Sigmoid(), Soft())}


def objective_of(given: Objective) -> ContrastiveObjective:
    """Returns the objective whose name is `given`, or `given` itself if it is an objective.

    Raises:
        ArgumentError: If the name is unknown.
    """
    if isinstance(given, ContrastiveObjective):
        return given
    checks.check_choice("objective", given, tuple(OBJECTIVES))
    return OBJECTIVES[given]
