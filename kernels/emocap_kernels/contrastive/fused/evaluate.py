r"""The global loss by fused kernels: exact, mined, at the speed of its matrix products, in memory linear in the batch.

Let \(X\) be the images of this rank and \(Y\) all texts. The score matrix \(Z = \mathrm{slope}\,X Y^\top\) is never
stored.

1. *Statistics* (`statistics.py`): one product makes each tile of \(Z\) once and gives the sums of its rows **and** of
   its columns from one exponential, \(E_{ij} = 2^{z_{ij} - h}\) with one shift \(h\) for the whole batch. With
   \(r_i = \sum_j E_{ij}\) and \(c_j = \sum_i E_{ij}\),
   \[ L_{i2t} = \frac{\ln 2}{B} \sum_i \Big[ \log_2 r_i + h - \frac1{|P_i|} \sum_{j \in P_i} z_{ij} \Big], \qquad
      L_{t2i} = \frac{\ln 2}{B} \sum_j \Big[ \log_2 c_j + h - \frac1{|Q_j|} \sum_{i \in Q_j} z_{ij} \Big]. \]
   Ranks add up their \(c_j\): one all-reduce of numbers, no vectors.
2. *Gradient* (`gradient.py`): the tiles are made again and leave
   \[ G_{ij} = \frac{E_{ij}}{r_i} + \frac{E_{ij}}{c_j} - \frac{[j \in P_i]}{|P_i|} - \frac{[i \in Q_j]}{|Q_j|} \]
   in a bounded chunk, in the type of the inputs. Two products of the library, summed in float32, carry it on:
   \(\partial L/\partial X = \frac{\mathrm{scale}}{2B}\,G Y\) and
   \(\partial L/\partial Y = \frac{\mathrm{scale}}{2B}\,G^\top X\). The gradient of the scale,
   \(\frac1{2B} \sum G_{ij} \langle x_i, y_j \rangle\), is summed before \(G\) is rounded.
3. *Positives* (`mining.py`) other than own pairs, equal ids and the score itself are marked in a chunk of bytes by
   products of the guide features, again for each pass.

Texts come in blocks, as they arrive from other ranks; a block is walked over like a whole batch of columns.

That is 8 b B D floating point operations (2 + 2 + 2 + 2), the least for a symmetric loss of which nothing is stored.
`sigmoid` has no normaliser: its gradient is made in forward, 6 b B D (`pairwise.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.contrastive.early import evaluate_early
from emocap_kernels.contrastive.fused.marks import positives_of
from emocap_kernels.contrastive.fused.pair_sums import PairSums
from emocap_kernels.contrastive.fused.scores import Exponents, exponents_of
from emocap_kernels.contrastive.fused.stats import Stats
from emocap_kernels.contrastive.fused.sweep import Walk, add_gradients, all_statistics
from emocap_kernels.contrastive.gradient_sums import GradientSums
from emocap_kernels.contrastive.objectives import InfoNCE, MilNCE, Sigmoid, Soft
from emocap_kernels.contrastive.outcome import Tally, outcome
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.errors import NotSupportedError
from emocap_kernels.fused.shapes import Shape, shape_for
from emocap_kernels.precision import full_precision
from emocap_kernels.result import LossResult
from emocap_kernels.transforms import first_order


def evaluate(problem: Problem) -> LossResult:
    """The loss of a problem whose rank holds any of the rows, in float32 or a half precision."""
    # Triton launches on the current device, which need not be that of the inputs.
    with torch.cuda.device_of(problem.image):
        return _evaluate(problem)


def _evaluate(problem: Problem) -> LossResult:
    image, objective = problem.image, problem.objective
    with torch.no_grad():
        positives = positives_of(problem)
    match objective:
        case InfoNCE() | MilNCE():
            shape = shape_for(image.dtype, image.device, masked=positives.masked)
            # With own pairs alone both objectives are the same.
            walk = Walk(positives, shape, sum_positives=isinstance(objective, MilNCE) and positives.masked)
            loss, seen = _Softmax.apply(image, problem.text, problem.scale, problem, walk)  # pyright: ignore[reportGeneralTypeIssues]
            return outcome(loss, seen)
        case Sigmoid():
            # The gradient of a sigmoid is made beside its losses, which takes the registers of half a tile as well.
            shape = shape_for(image.dtype, image.device, masked=True)
            return evaluate_early(problem, PairSums(problem, Walk(positives, shape, sum_positives=False)).sigmoid)
        case Soft():
            walk = Walk(positives, _shape_beside_a_teacher(problem), sum_positives=False)
            return evaluate_early(problem, PairSums(problem, walk).soft)
        case _:
            raise NotSupportedError(f"the objective {objective.name!r} has no fused kernels; use backend='auto'.")


def _shape_beside_a_teacher(problem: Problem) -> Shape:
    """The tile of the scores, and of the teacher's beside them."""
    assert problem.features is not None
    image, taught = problem.image, problem.features.own["image"].dtype
    return shape_for(image.dtype if image.dtype == taught else torch.float32, image.device, masked=True)


class _Softmax(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, problem: Problem, walk: Walk
    ) -> tuple[Tensor, Tensor]:
        # What autograd differentiates; the problem holds it.
        del text
        own = problem.text.to(image.dtype)
        exponents = exponents_of(image, own, scale, problem.span, problem.ranks)
        rows, columns = all_statistics(problem, exponents, walk)
        shares = (each.shares(exponents.shift, exponents.steep) for each in (rows, columns))
        ctx.walk = walk
        ctx.problem, vectors = problem.put_away()
        saved = scale, exponents.slope, exponents.shift, exponents.steep, *shares, walk.positives.groups
        ctx.save_for_backward(*saved, *vectors)
        seen = _tally(rows, columns.part(problem.span.own)).means(problem.span, problem.ranks).to(scale.dtype)
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @first_order
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, None, None]:
        scale, slope, shift, steep, row_shares, column_shares, _, *vectors = ctx.saved_tensors
        problem: Problem = ctx.problem.taken_out(vectors)
        sums = GradientSums(problem, (*ctx.needs_input_grad[:3], False))
        with full_precision(scale.device), torch.cuda.device_of(scale):
            add_gradients(sums, problem, Exponents(slope, shift, steep), ctx.walk, (row_shares, column_shares))
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        share = grad_outputs[0] * (problem.ranks.size / (2 * problem.span.total))
        return *sums.finished(share * scale), sums.scale.to(scale.dtype) * share, None, None


def _tally(rows: Stats, columns: Stats) -> Tally:
    return Tally(
        image_loss=rows.losses().sum(),
        text_loss=columns.losses().sum(),
        image_positives=rows.count.double().sum(),
        text_positives=columns.count.double().sum(),
        image_found=rows.best.found.double().sum(),
        text_found=columns.best.found.double().sum(),
    )
