r"""The objectives of the global loss: what each makes of the scores of an anchor.

An objective is a value without state. Its formula, `anchor_losses`, is the specification, and `reference` evaluates
it with autograd. The other backends differ in how an objective goes over the scores:

- `infonce` and `mil_nce` need the sum over all candidates before any gradient is known, so scores are made twice
  (`chunked`).
- An objective that is a sum over pairs (`SumOverPairs`) knows its gradient while it sees a tile of scores (`pairwise`).

A new objective with its formula alone runs with `backend="reference"`. With `losses` and `gradient` of a tile it also
runs in bounded memory. Fused kernels are optional.
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
    """All scores of one direction; rows are its anchors.

    Attributes:
        score: [anchors, candidates], scale and bias included.
        positive: Bool [anchors, candidates].
        dropped: Bool [anchors, candidates]; these pairs take no part.
        teacher: [anchors, candidates], the teacher's scores; None without a teacher.
    """

    score: Tensor
    positive: Tensor
    dropped: Tensor
    teacher: Tensor | None

    def log_probability(self) -> Tensor:
        """Log-softmax over the candidates that take part, [anchors, candidates]."""
        return self.score.masked_fill(self.dropped, float("-inf")).log_softmax(1)


@dataclass(frozen=True, slots=True)
class Taught:
    """The teacher's view of a tile, with the log-sums of exp(score) over all candidates of each anchor.

    Attributes:
        score: The teacher's, [images, texts].
        image_log_sums: Those of the student and of the teacher, [images, 1] each.
        text_log_sums: Those of the student and of the teacher, [texts] each.
    """

    score: Tensor
    image_log_sums: tuple[Tensor, Tensor]
    text_log_sums: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Tile:
    """The scores of some images with some texts.

    Attributes:
        score: [images, texts], scale and bias included.
        targets: Which of the pairs are positives, and which take no part.
        taught: None without a teacher.
    """

    score: Tensor
    targets: Targets
    taught: Taught | None


class ContrastiveObjective(ABC):
    """What is made of the scores of an anchor.

    Attributes:
        name: What `contrastive_loss` calls it, and what ranks compare.
        has_bias: Whether a number is added to all scores; elsewhere it would cancel.
        has_teacher: Whether the softmax of a teacher's scores replaces the positives.
        has_kernels: Whether there are fused kernels for it.
    """

    name: ClassVar[str]
    has_bias: ClassVar[bool] = False
    has_teacher: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False

    @abstractmethod
    def anchor_losses(self, scores: DenseScores) -> Tensor:
        """Returns the loss of each anchor, [anchors], as the formula reads; autograd differentiates it."""
        ...


@runtime_checkable
class SumOverPairs(Protocol):
    """An objective whose loss is a sum over pairs, so that a tile of scores gives its losses and its gradient."""

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Returns the sums over the tile of the image and of the text direction, 0-dim float64 each."""
        ...

    def gradient(self, tile: Tile) -> Tensor:
        """Returns the gradient of both sums together in the scores, [images, texts]."""
        ...


@dataclass(frozen=True, slots=True)
class InfoNCE(ContrastiveObjective):
    r"""Averages the log-probabilities of an anchor's positives (van den Oord et al. 2018, Khosla et al. 2020).

    \(\log\sum_j e^{S_{ij}} - \frac1{|P_i|} \sum_{j \in P_i} S_{ij}\)
    """

    name = "infonce"
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        positive = scores.positive
        return -(scores.log_probability().where(positive, 0.0).sum(1) / positive.sum(1))


@dataclass(frozen=True, slots=True)
class MilNCE(ContrastiveObjective):
    r"""Takes the log of the summed probability of an anchor's positives (Miech et al. 2020).

    \(\log\sum_j e^{S_{ij}} - \log\sum_{j \in P_i} e^{S_{ij}}\)
    """

    name = "mil_nce"
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        return -scores.log_probability().masked_fill(~scores.positive, float("-inf")).logsumexp(1)


@dataclass(frozen=True, slots=True)
class Sigmoid(ContrastiveObjective):
    r"""Asks of every pair whether it is a positive (SigLIP, Zhai et al. 2023).

    With \(t_{ij} = S_{ij} + \mathrm{bias}\) it is \(-\sum_j \log\sigma(\pm t_{ij})\), plus for positives and minus for
    others, which is \(\sum_j \log(1 + e^{t_{ij}}) - \sum_{j \in P_i} t_{ij}\). The gradient is
    \(\sigma(t_{ij}) - [j \in P_i]\).
    """

    name = "sigmoid"
    has_bias = True
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        signed = torch.where(scores.positive, scores.score, -scores.score)
        return -logsigmoid(signed).masked_fill(scores.dropped, 0.0).sum(1)

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        score, targets = tile.score, tile.targets
        by_row, by_column = targets.row_candidates(score), targets.column_candidates(score)
        image = softplus(by_row).sum(1).double().sum()
        text = image if by_row is by_column else softplus(by_column).sum(1).double().sum()
        return image - targets.row_sums(score).double().sum(), text - targets.column_sums(score).double().sum()

    def gradient(self, tile: Tile) -> Tensor:
        score, targets = tile.score, tile.targets
        gradient = targets.row_candidates(score).sigmoid()
        gradient += targets.column_candidates(score).sigmoid()
        ones = score.new_ones(())
        targets.subtract_(gradient, ones.expand(score.shape[0]), ones.expand(score.shape[1]))
        return gradient


@dataclass(frozen=True, slots=True)
class Soft(ContrastiveObjective):
    r"""The KL divergence of the softmax of the scores from that of a teacher's scores.

    \(\sum_j T_{ij} (\log T_{ij} - \log p_{ij})\) with \(p_i\) the softmax of \(S_i\); the gradient is
    \(p_{ij} - T_{ij}\).
    """

    name = "soft"
    has_teacher = True
    has_kernels = True

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        assert scores.teacher is not None
        target = scores.teacher.log_softmax(1)
        return (target.exp() * (target - scores.log_probability())).sum(1)

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        assert tile.taught is not None
        sums: list[Tensor] = []
        for log_sum, teacher_log_sum in (tile.taught.image_log_sums, tile.taught.text_log_sums):
            target = tile.taught.score - teacher_log_sum
            difference = target - (tile.score - log_sum)
            sums.append(difference.mul_(target.exp_()).sum(1).double().sum())
        return sums[0], sums[1]

    def gradient(self, tile: Tile) -> Tensor:
        assert tile.taught is not None
        gradient = torch.zeros_like(tile.score)
        for log_sum, teacher_log_sum in (tile.taught.image_log_sums, tile.taught.text_log_sums):
            gradient += (tile.score - log_sum).exp_()
            gradient -= (tile.taught.score - teacher_log_sum).exp_()
        return gradient


ObjectiveName = Literal["infonce", "mil_nce", "sigmoid", "soft"]
# What a caller passes: a name, or a value of its own.
Objective = ObjectiveName | ContrastiveObjective
OBJECTIVES: dict[str, ContrastiveObjective] = {each.name: each for each in (InfoNCE(), MilNCE(), Sigmoid(), Soft())}


def objective_of(given: Objective) -> ContrastiveObjective:
    """Returns the objective that a caller means.

    Raises:
        ArgumentError: If there is no objective of this name.
    """
    if isinstance(given, ContrastiveObjective):
        return given
    checks.check_choice("objective", given, tuple(OBJECTIVES))
    return OBJECTIVES[given]
