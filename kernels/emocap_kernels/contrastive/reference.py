r"""Computes the global loss by its formulas on whole matrices. All other backends are tested against this reference.

InfoNCE (van den Oord et al. 2018) averages the log-probabilities of several positives (Khosla et al. 2020):

\[ L_{i2t} = \frac1B \sum_i \Big[ \log\sum_j e^{S_{ij}} - \frac1{|P_i|} \sum_{j \in P_i} S_{ij} \Big],
   \qquad S_{ij} = \mathrm{scale}\,\langle v_i, u_j \rangle \]

\(v_i\) is the embedding of image i, \(u_j\) that of text j, B the number of rows of the batch, and \(P_i\) are the
positives of image i. For text anchors the formula is the same with the transposed scores and the positives \(Q_j\) of
text j, and the loss is the mean of both directions. The other objectives (see `objectives`) replace the expression in
brackets.

Every matrix is held in full, and autograd computes the gradients. With several ranks, each of them holds the whole
batch and repeats the whole computation (`replicated_batch`). This module selects the mined positives by formulas of its
own, because it is the specification (decision 26). It shares with the module `positives` only the tables that say
which similarities each guide (`Mining.guide`) compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.contrastive.batch import ContrastiveBatch, duplicates_of
from emocap_kernels.contrastive.objectives import DenseScores
from emocap_kernels.mining import Guide, top_k_pairs
from emocap_kernels.positives import IMAGE_ANCHORS, TEXT_ANCHORS, GuideSimilarities
from emocap_kernels.result import Directions, LossResult


def evaluate(batch: ContrastiveBatch) -> LossResult:
    """Returns the loss of `batch`, computed on whole matrices. This rank must hold all rows of the batch."""
    score = batch.scale * (batch.image @ batch.text.T) + batch.bias
    # The known pairs are symmetric, so one matrix serves both directions. In each direction the anchors are the rows.
    known = _known(batch)
    teacher = _teacher(batch)
    image = _direction(score, known, batch, _mined(batch, IMAGE_ANCHORS), teacher)
    transposed = None if teacher is None else teacher.T
    text = _direction(score.T, known, batch, _mined(batch, TEXT_ANCHORS), transposed)
    return LossResult(
        loss=(image.loss + text.loss) / 2,
        image_to_text=image.loss.detach(),
        text_to_image=text.loss.detach(),
        positives=(image.positives + text.positives) / 2,
        recall_at_1=Directions(image.recall_at_1, text.recall_at_1),
    )


@dataclass(frozen=True, slots=True)
class _DirectionMeans:
    loss: Tensor
    positives: Tensor
    recall_at_1: Tensor


def _direction(
    score: Tensor, known: Tensor, batch: ContrastiveBatch, mined: Tensor | None, teacher: Tensor | None
) -> _DirectionMeans:
    """Returns the mean loss, the mean number of positives and the recall at 1 of the anchors of one direction.

    The anchors are the rows of `score`, `known`, `mined` and `teacher`. `known` marks the pairs that are positives
    without mining, and `mined` those that mining found.
    """
    positive, dropped = known, torch.zeros_like(known)
    if batch.mining is not None and mined is not None:
        if batch.mining.attracts:
            positive = known | mined
        else:
            dropped = mined & ~known
    loss = batch.objective.anchor_losses(DenseScores(score, positive, dropped, teacher)).mean()
    # All candidates take part in the recall, also the excluded ones.
    hits = known.gather(1, score.detach().max(1, keepdim=True).indices)
    return _DirectionMeans(loss, positive.sum(1).to(score.dtype).mean(), hits.to(score.dtype).mean())


def _teacher(batch: ContrastiveBatch) -> Tensor | None:
    """Returns the teacher's scores, [images, texts], or None without a teacher."""
    if not batch.objective.has_teacher or batch.features is None:
        return None
    cosine = batch.features.similarity((("image", "text"),), slice(None), batch.features.own)
    return batch.guide_scale * cosine.to(batch.image.dtype)


def _known(batch: ContrastiveBatch) -> Tensor:
    """Returns a mask of the pairs that are positives without mining, bool [rows, rows].

    With ids, these are the pairs of equal id; without ids, only the image and the text of the same row.
    """
    ids = batch.ids
    if ids is None:
        return torch.eye(len(batch.image), dtype=torch.bool, device=batch.image.device)
    return ids[:, None] == ids[None, :]


def _mined(batch: ContrastiveBatch, guides: Mapping[Guide, GuideSimilarities]) -> Tensor | None:
    """Returns a mask of the mined pairs of one direction, bool [anchors, candidates], or None without mining.

    A guide (`Mining.guide`) names the similarity by which pairs are mined. For each guide, `guides` holds one or two
    pairs (modality of the anchor, modality of the candidate), whose features are compared with each other. If there are
    two pairs, the smaller of the two similarities counts.
    """
    mining, features = batch.mining, batch.features
    if mining is None or features is None:
        return None
    everything, similarities, candidates = slice(None), guides[mining.guide], features.own
    mined = None
    if mining.threshold is not None:
        mined = features.similarity(similarities, everything, candidates) >= mining.threshold
    if mining.top_k is not None:
        duplicates = duplicates_of(similarities, candidates)
        similarity = features.similarity(similarities, everything, candidates, duplicates)
        close = top_k_pairs(similarity, mining.top_k)
        mined = close if mined is None else mined & close
    return mined
