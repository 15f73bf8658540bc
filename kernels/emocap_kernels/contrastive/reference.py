r"""The specification: the objectives with mined positives on the whole batch, as the formulas read.

InfoNCE (van den Oord et al. 2018) with several positives, their log-probabilities averaged (Khosla et al. 2020):

\[ L_{i2t} = \frac1B \sum_i \Big[ \log\sum_j e^{S_{ij}} - \frac1{|P_i|} \sum_{j \in P_i} S_{ij} \Big],
   \qquad S_{ij} = \mathrm{scale}\,\langle v_i, u_j \rangle \]

and the same for text anchors with \(Q_j\) and the transposed scores; the loss is the mean of the two. The others
differ in what is averaged over the anchors of a direction:

- `mil_nce` (Miech et al. 2020): \(\log\sum_j e^{S_{ij}} - \log\sum_{j \in P_i} e^{S_{ij}}\)
- `sigmoid` (Zhai et al. 2023): \(-\sum_j \log\sigma(\pm(S_{ij} + \mathrm{bias}))\), plus for
  positives, minus for others
- `soft`: \(\mathrm{KL}(T_i \,\|\, \operatorname{softmax}_j S_{ij})\) with \(T_i\) the softmax of a teacher's scores

It makes every matrix in whole and leaves the gradients to autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from emocap_kernels.contrastive.problem import (
    IMAGE_ANCHORS,
    TEXT_ANCHORS,
    Objective,
    Problem,
    Products,
    twins_of,
)
from emocap_kernels.mining import Guide
from emocap_kernels.result import Directions, LossResult


def evaluate(problem: Problem) -> LossResult:
    """The loss of a problem whose rank holds all rows."""
    score = problem.scale * (problem.image @ problem.text.T) + problem.bias
    known = _known(problem)
    teacher = _teacher(problem)
    image = _direction(score, known, problem, _mined(problem, IMAGE_ANCHORS), teacher)
    text = _direction(score.T, known, problem, _mined(problem, TEXT_ANCHORS), teacher.T)
    return LossResult(
        loss=(image.loss + text.loss) / 2,
        image_to_text=image.loss.detach(),
        text_to_image=text.loss.detach(),
        positives=(image.positives + text.positives) / 2,
        recall_at_1=Directions(image.recall_at_1, text.recall_at_1),
    )


@dataclass(frozen=True, slots=True)
class _Direction:
    loss: Tensor
    positives: Tensor
    recall_at_1: Tensor


def _direction(score: Tensor, known: Tensor, problem: Problem, mined: Tensor | None, teacher: Tensor) -> _Direction:
    """One direction: rows of `score` and of `teacher` are its anchors."""
    positive, dropped = known, torch.zeros_like(known)
    if problem.mining is not None and mined is not None:
        if problem.mining.treatment == "attract":
            positive = known | mined
        else:
            dropped = mined & ~known
    loss = _anchor_losses(problem.objective, score, positive, dropped, teacher).mean()
    found = known.gather(1, score.detach().max(1, keepdim=True).indices)
    return _Direction(loss, positive.sum(1).to(score.dtype).mean(), found.to(score.dtype).mean())


def _anchor_losses(objective: Objective, score: Tensor, positive: Tensor, dropped: Tensor, teacher: Tensor) -> Tensor:
    if objective == "sigmoid":
        signed = torch.where(positive, score, -score)
        return -logsigmoid(signed).masked_fill(dropped, 0.0).sum(1)
    log_probability = score.masked_fill(dropped, float("-inf")).log_softmax(1)
    if objective == "mil_nce":
        return -log_probability.masked_fill(~positive, float("-inf")).logsumexp(1)
    if objective == "soft":
        target = teacher.log_softmax(1)
        return (target.exp() * (target - log_probability)).sum(1)
    return -(log_probability.where(positive, 0.0).sum(1) / positive.sum(1))


def _teacher(problem: Problem) -> Tensor:
    """The teacher's scores, or without one a matrix of no rows that nobody reads."""
    if problem.objective != "soft" or problem.features is None:
        return problem.image.new_zeros(0, 0)
    cosine = problem.features.similarity((("image", "text"),), slice(None), problem.features.own)
    return problem.guide_scale * cosine.to(problem.image.dtype)


def _known(problem: Problem) -> Tensor:
    ids = problem.ids
    if ids is None:
        return torch.eye(len(problem.image), dtype=torch.bool, device=problem.image.device)
    return ids[:, None] == ids[None, :]


def _mined(problem: Problem, guides: Mapping[Guide, Products]) -> Tensor | None:
    """Bool [anchors, candidates] of one direction."""
    mining, features = problem.mining, problem.features
    if mining is None or features is None:
        return None
    everything, products, every = slice(None), guides[mining.guide], features.own
    mined = None
    if mining.threshold is not None:
        mined = features.similarity(products, everything, every) >= mining.threshold
    if mining.top_k is not None:
        twins = twins_of(products, every)
        close = _top_k(features.similarity_of_twins(products, everything, every, twins), mining.top_k)
        mined = close if mined is None else mined & close
    return mined


def _top_k(similarity: Tensor, top_k: int) -> Tensor:
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    # A stable sort keeps equal similarities in the order of their index.
    order = similarity.masked_fill(itself, float("-inf")).sort(stable=True, dim=1, descending=True).indices
    return torch.zeros_like(itself).scatter_(1, order[:, :top_k], True) & ~itself
