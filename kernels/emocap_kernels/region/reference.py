r"""Computes the local loss by its formulas on whole matrices. All other backends are tested against this reference.

\(p_{ip}\) is patch p of image i, \(u_n\) is sentence n, and image i owns \(K_i\) sentences. \(P_i\) and \(Q_n\) are the
positives of image i and of sentence n.

\[ z_{ipn} = \langle p_{ip}, u_n \rangle, \quad a_{ipn} = \mathrm{softmax}_p(\mathrm{sharpness}\, z_{ipn}), \quad
   S_{in} = \mathrm{scale} \sum_p a_{ipn} z_{ipn} \]

\[ L_{i2s} = \operatorname{mean}_{i : K_i > 0} \Big[ \log\sum_n e^{S_{in}}
                                                   - \operatorname{mean}_{n \in P_i} S_{in} \Big] \]

\[ L_{s2i} = \operatorname{mean}_n \Big[ \log\sum_i e^{S_{in}} - \operatorname{mean}_{i \in Q_n} S_{in} \Big] \]

These formulas are those of scope `batch` (every sentence with every image), which `evaluate` computes.
`evaluate_within` computes scope `image` (every sentence with its own image only) in a loop over images. If there are
several ranks, each of them holds the whole batch and repeats the whole computation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from emocap_kernels.mining import Mining, first_duplicates, top_k_pairs
from emocap_kernels.region.batch import RegionBatch
from emocap_kernels.region.pooling import pooling_weights
from emocap_kernels.region.within import pooled_patches
from emocap_kernels.result import Directions, LossResult


def evaluate(batch: RegionBatch) -> LossResult:
    """Returns the local loss of scope `batch`: every sentence is compared with every image of the batch.

    This rank must hold the whole batch, which must have at least one sentence.
    """
    similarity = torch.einsum("ipd,nd->nip", batch.patches, batch.sentences)
    attention = pooling_weights(similarity, batch.sharpness, batch.patch_mask)
    score = batch.scale * (attention * similarity).sum(-1).T
    own = batch.owner == torch.arange(len(score), device=score.device)[:, None]
    by_image, by_sentence = _mined(batch, own)
    # Images without a sentence are no anchors. As candidates of sentences they stay.
    anchors = batch.is_anchor()
    attract = batch.mining is None or batch.mining.attracts
    to_text = _direction(score[anchors], own[anchors], by_image[anchors], attract=attract)
    to_image = _direction(score.T, own.T, by_sentence.T, attract=attract)
    return LossResult(
        loss=(to_text[0] + to_image[0]) / 2,
        image_to_text=to_text[0].detach(),
        text_to_image=to_image[0].detach(),
        positives=(to_text[1] + to_image[1]) / 2,
        recall_at_1=Directions(to_text[2], to_image[2]),
    )


def _direction(score: Tensor, own: Tensor, mined: Tensor, *, attract: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean loss, the mean number of positives and the recall at 1 of the anchors of one direction.

    The anchors are the rows of `score`, `own` and `mined`, [anchors, candidates]. `own` is True for a sentence and the
    image that owns it, which are positives without mining. `mined` is True for pairs that mining found. `attract` says
    whether mined pairs are positives; otherwise they are excluded.
    """
    positive = own | mined if attract else own
    dropped = torch.zeros_like(own) if attract else mined & ~own
    log_probability = score.masked_fill(dropped, float("-inf")).log_softmax(1)
    count = positive.sum(1)
    loss = -(log_probability.where(positive, 0.0).sum(1) / count).mean()
    hits = own.gather(1, score.detach().max(1, keepdim=True).indices)
    return loss, count.to(score.dtype).mean(), hits.to(score.dtype).mean()


def _mined(batch: RegionBatch, own: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two bool masks, [images, sentences]: pairs mined for image anchors, and for sentence anchors.

    `own` marks the pairs of a sentence and the image that owns it. Both masks also contain these pairs.
    """
    if batch.mining is None:
        return own, own
    similar = _similar(batch.sentences.detach(), batch.mining)
    # A product of matrices of 0 and 1 counts the sentences that lead from an image to a sentence. More than 0 means
    # "any".
    has = own.to(batch.sentences.dtype)
    # M(n) consists of sentence n and the sentences that are mined for it. Sentence m is mined for image i if m is in
    # M(n) for an own sentence n of the image. Image i is mined for sentence n if it owns a sentence of M(n).
    return has @ similar > 0, has @ similar.T > 0


def _similar(sentences: Tensor, mining: Mining) -> Tensor:
    """Returns a matrix, [sentences, sentences], with 1 at (n, m) if m is n or was mined for n, else 0."""
    itself = torch.eye(len(sentences), dtype=torch.bool, device=sentences.device)
    similarity = sentences @ sentences.T
    close = torch.ones_like(itself)
    if mining.threshold is not None:
        close = similarity >= mining.threshold
    if mining.top_k is not None:
        duplicates = first_duplicates(sentences)
        close = close & top_k_pairs(similarity if duplicates is None else similarity[:, duplicates], mining.top_k)
    return (close | itself).to(sentences.dtype)


def evaluate_within(batch: RegionBatch) -> LossResult:
    """Returns the local loss of scope `image`: sentences are compared only with patches of their own image.

    This rank must hold the whole batch. The loss is computed image by image; the module `within` has the formula.
    """
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    for image in batch.is_anchor().nonzero()[:, 0].tolist():
        sentences = batch.sentences[batch.owner == image]
        kept = None if batch.patch_mask is None else batch.patch_mask[image]
        score = batch.scale * (pooled_patches(batch.patches[image], sentences, kept) @ sentences.T)
        itself = torch.arange(len(sentences), device=score.device)
        losses.append(torch.stack([cross_entropy(score, itself), cross_entropy(score.T, itself)]))
        hits.append(torch.stack([score.max(1).indices == itself, score.max(0).indices == itself]))
    both = torch.stack(losses).mean(0)
    image_to_text, text_to_image = both.detach().unbind()
    recall = torch.cat(hits, dim=1).to(both.dtype).mean(1)
    one = torch.ones_like(image_to_text)
    return LossResult(both.mean(), image_to_text, text_to_image, one, Directions(recall[0], recall[1]))
