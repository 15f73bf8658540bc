r"""The specification: the objectives with mined positives on the whole batch, as the formulas read.

InfoNCE (van den Oord et al. 2018) with several positives, their log-probabilities averaged (Khosla et al. 2020):

\[ L_{i2t} = \frac1B \sum_i \Big[ \log\sum_j e^{S_{ij}} - \frac1{|P_i|} \sum_{j \in P_i} S_{ij} \Big],
   \qquad S_{ij} = \mathrm{scale}\,\langle v_i, u_j \rangle \]

and the same for text anchors with \(Q_j\) and the transposed scores; the loss is the mean of the two. The other
objectives (`objectives`) differ in what is averaged over the anchors of a direction.

It makes every matrix in whole and leaves the gradients to autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.objectives import DenseScores
from emocap_kernels.contrastive.problem import Problem, twins_of
from emocap_kernels.mining import Guide
from emocap_kernels.positives import IMAGE_ANCHORS, TEXT_ANCHORS, Products
from emocap_kernels.result import Directions, LossResult


def evaluate(problem: Problem) -> LossResult:
    """The loss of a problem whose rank holds all rows."""
    score = problem.scale * (problem.image @ problem.text.T) + problem.bias
    known = _known(problem)
    teacher = _teacher(problem)
    image = _direction(score, known, problem, _mined(problem, IMAGE_ANCHORS), teacher)
    transposed = None if teacher is None else teacher.T
    text = _direction(score.T, known, problem, _mined(problem, TEXT_ANCHORS), transposed)
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


def _direction(
    score: Tensor, known: Tensor, problem: Problem, mined: Tensor | None, teacher: Tensor | None
) -> _Direction:
    """One direction: rows of `score` and of `teacher` are its anchors."""
    positive, dropped = known, torch.zeros_like(known)
    if problem.mining is not None and mined is not None:
        if problem.mining.attracts:
            positive = known | mined
        else:
            dropped = mined & ~known
    loss = problem.objective.anchor_losses(DenseScores(score, positive, dropped, teacher)).mean()
    found = known.gather(1, score.detach().max(1, keepdim=True).indices)
    return _Direction(loss, positive.sum(1).to(score.dtype).mean(), found.to(score.dtype).mean())


def _teacher(problem: Problem) -> Tensor | None:
    """The teacher's scores, [images, texts]."""
    if not problem.objective.has_teacher or problem.features is None:
        return None
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
