r"""Computes the global loss by fused Triton kernels, in memory that is linear in the batch.

Let \(X\) be the images of this rank, with the rows \(x_i\), and \(Y\) all texts, with the rows \(y_j\). \(B\) is the
number of samples in the global batch. The matrix of scores in base 2,
\(Z = \mathrm{scale} \cdot \log_2 e \cdot X Y^\top\) with the entries \(z_{ij}\), is never stored.

1. *Statistics* (`kernels/statistics.py`): each tile of \(Z\) is computed once. One exponential
   \(E_{ij} = 2^{z_{ij} - h}\), with one shift \(h\) for the whole batch, gives the sums of its rows **and** of its
   columns. Let \(r_i = \sum_j E_{ij}\) and \(c_j = \sum_i E_{ij}\), and let \(P_i\) and \(Q_j\) be the positives of
   image i and of text j. The losses of the two directions, whose mean is the loss \(L\), are
   \[ L_{i2t} = \frac{\ln 2}{B} \sum_i \Big[ \log_2 r_i + h - \frac1{|P_i|} \sum_{j \in P_i} z_{ij} \Big], \qquad
      L_{t2i} = \frac{\ln 2}{B} \sum_j \Big[ \log_2 c_j + h - \frac1{|Q_j|} \sum_{i \in Q_j} z_{ij} \Big]. \]
   The ranks add their parts of \(c_j\) by an all-reduce of a few numbers for each column; no vectors are sent.
2. *Gradient* (`kernels/gradient.py`): each tile is computed again, and the kernel writes
   \[ G_{ij} = \frac{E_{ij}}{r_i} + \frac{E_{ij}}{c_j} - \frac{[j \in P_i]}{|P_i|} - \frac{[i \in Q_j]}{|Q_j|} \]
   to a chunk of bounded size, in the type of the inputs. Two matrix products of torch, which add in float32, give
   \(\partial L/\partial X = \frac{\mathrm{scale}}{2B}\,G Y\) and
   \(\partial L/\partial Y = \frac{\mathrm{scale}}{2B}\,G^\top X\). The gradient of the scale,
   \(\frac1{2B} \sum G_{ij} \langle x_i, y_j \rangle\), is summed before \(G\) is rounded.
3. *Mined positives* (`kernels/mining.py`): either the score of a pair decides whether the pair is mined, or the
   similarity of guide features (the vectors that mining compares) decides it. In the second case, forward and backward
   each write the decisions to a mask with one byte for each pair, chunk by chunk.

Texts arrive in blocks from other ranks. Each of these steps goes over the blocks one after the other.

With b rows on this rank and vectors of width D, this costs `8 * b * B * D` floating-point operations, the least for a
symmetric loss that stores no scores. `sigmoid` needs no sums \(r_i\) and \(c_j\), so its gradient is computed in
forward, and it costs `6 * b * B * D` (`pairwise.py`).

This module selects the kernels by the objective, and holds the autograd function of `infonce` and `mil_nce`.
`softmax.py` starts their kernels, `scores.py` chooses the shift (decision 9), `positives.py` prepares masks, and
`stats.py` merges the statistics that kernels wrote. Decision 10 says why kernels write chunks that torch multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.contrastive.batch import ContrastiveBatch
from emocap_kernels.contrastive.fused.pairwise import PairwiseKernels
from emocap_kernels.contrastive.fused.positives import FusedPositives
from emocap_kernels.contrastive.fused.scores import ExponentScale, choose_exponent_scale
from emocap_kernels.contrastive.fused.softmax import KernelPlan, add_gradients, score_statistics
from emocap_kernels.contrastive.fused.stats import Base2Stats
from emocap_kernels.contrastive.objectives import InfoNCE, MilNCE, Sigmoid, Soft
from emocap_kernels.contrastive.pairwise import evaluate_pair_pass
from emocap_kernels.contrastive.sums import GradientSums, LossSums
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.fused.tiling import TileConfig, tile_config_for
from emocap_kernels.precision import full_precision
from emocap_kernels.result import LossResult
from emocap_kernels.transforms import once_differentiable


def evaluate(batch: ContrastiveBatch) -> LossResult:
    """Returns the loss of the global batch, of which this rank may hold any number of rows.

    This is a collective: all ranks must call it.

    Args:
        batch: The batch, with embeddings in float32 or a half-precision type.

    Raises:
        NotSupportedError: If the objective has no kernels.
    """
    # Triton starts kernels on the current device, which need not be that of the inputs.
    with torch.cuda.device_of(batch.image):
        return _evaluate(batch)


def _evaluate(batch: ContrastiveBatch) -> LossResult:
    image, objective = batch.image, batch.objective
    with torch.no_grad():
        positives = FusedPositives.of(batch)
    match objective:
        case InfoNCE() | MilNCE():
            tile = tile_config_for(image.dtype, image.device, masked=positives.masked)
            # With own pairs alone both objectives are equal.
            plan = KernelPlan(positives, tile, sum_positives=isinstance(objective, MilNCE) and positives.masked)
            loss, means = _Softmax.apply(image, batch.text, batch.scale, batch, plan)  # pyright: ignore[reportGeneralTypeIssues]
            return LossResult.from_means(loss, means)
        case Sigmoid():
            # The gradient of a sigmoid is computed together with its losses, which needs as many registers as a mask.
            tile = tile_config_for(image.dtype, image.device, masked=True)
            kernels = PairwiseKernels(batch, KernelPlan(positives, tile, sum_positives=False))
            return evaluate_pair_pass(batch, kernels.sigmoid)
        case Soft():
            plan = KernelPlan(positives, _tile_with_teacher(batch), sum_positives=False)
            return evaluate_pair_pass(batch, PairwiseKernels(batch, plan).soft)
        case _:
            raise NotSupportedError(f"the objective {objective.name!r} has no fused kernels; use backend='auto'.")


def _tile_with_teacher(batch: ContrastiveBatch) -> TileConfig:
    """Returns the tile size for kernels that compute the scores of the student and of the teacher together."""
    assert batch.features is not None
    image, teacher_dtype = batch.image, batch.features.own["image"].dtype
    # One kernel loads both kinds of vectors with one tile size. If their types differ, the tile of float32 fits both.
    return tile_config_for(image.dtype if image.dtype == teacher_dtype else torch.float32, image.device, masked=True)


class _Softmax(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, batch: ContrastiveBatch, plan: KernelPlan
    ) -> tuple[Tensor, Tensor]:
        # Autograd differentiates `text`. The batch holds it too.
        del text
        # 1. The device chooses one of the two variants of the kernels.
        own = batch.text.to(image.dtype)
        exponents = choose_exponent_scale(image, own, scale, batch.partition, batch.ranks)
        # 2. One pass over all scores gives the statistics. Backward needs only their gradient weights.
        rows, columns = score_statistics(batch, exponents, plan)
        weights = (each.gradient_weights(exponents.shift, exponents.needs_running_max) for each in (rows, columns))
        # 3. What backward needs is kept: a few numbers of each anchor, and the vectors.
        ctx.plan = plan
        ctx.batch, vectors = batch.pack()
        saved = scale, exponents.slope, exponents.shift, exponents.needs_running_max, *weights, plan.positives.groups
        ctx.save_for_backward(*saved, *vectors)
        # 4. The losses of this rank's own anchors become means over the global batch.
        sums = _loss_sums(rows, columns.part(batch.partition.own))
        means = sums.means(batch.partition, batch.ranks).to(scale.dtype)
        ctx.mark_non_differentiable(means)
        return (means[0] + means[1]) / 2, means

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None, None]:
        scale, slope, shift, running_max, row_weights, column_weights, _, *vectors = ctx.saved_tensors
        batch: ContrastiveBatch = ctx.batch.unpack(vectors)
        sums = GradientSums(batch, (*ctx.needs_input_grad[:3], False))
        with full_precision(scale.device), torch.cuda.device_of(scale):
            exponents = ExponentScale(slope, shift, running_max)
            add_gradients(sums, batch, exponents, ctx.plan, (row_weights, column_weights))
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        factor = grad_outputs[0] * (batch.ranks.size / (2 * batch.partition.total))
        return *sums.finished(factor * scale), sums.scale.to(scale.dtype) * factor, None, None


def _loss_sums(rows: Base2Stats, columns: Base2Stats) -> LossSums:
    """Returns the sums of losses, positives and hits over the local anchors.

    `rows` are the statistics of the local image anchors, and `columns` those of the local text anchors. A hit is an
    anchor whose best-scoring candidate is a positive without mining.
    """
    return LossSums(
        image_loss=rows.losses().sum(),
        text_loss=columns.losses().sum(),
        image_positives=rows.count.double().sum(),
        text_positives=columns.count.double().sum(),
        image_hits=rows.best.hit.double().sum(),
        text_hits=columns.best.hit.double().sum(),
    )
