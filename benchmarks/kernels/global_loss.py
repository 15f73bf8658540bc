"""The global loss: all implementations that are measured."""

from __future__ import annotations

from typing import Literal

import torch
from emocap_kernels import contrastive_loss
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import pair_truth, peers
from .pairs import PairBatch, draw
from .size import Size
from .subject import Contender, Loss, Subject, compiled
from .variants import PLAIN, SIGMOID, VARIANTS, Variant, floor_flops

_SMALL_ROWS = 256
_FLOAT_BYTES = 4
# Matrices that autograd holds in float32: scores, two log-softmaxes, and the gradients of two of these at a time.
_DENSE_MATRICES = 5


def ours(backend: Literal["reference", "chunked", "fused"], variant: Variant) -> Loss:
    """Returns our loss with a given backend."""

    def loss(batch: PairBatch) -> Tensor:
        bias = batch.bias if variant.objective == "sigmoid" else None
        return contrastive_loss(
            batch.image,
            batch.text,
            batch.scale,
            objective=variant.objective,
            bias=bias,
            mining=variant.mining,
            backend=backend,
        ).loss

    return loss


def dense(batch: PairBatch) -> Tensor:
    """Computes InfoNCE in plain PyTorch: one matrix, both directions, the softmax in at least float32."""
    scores = batch.image @ batch.text.T
    logits = batch.scale * (scores if scores.dtype == torch.float64 else scores.float())
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def dense_bytes(size: Size) -> float:
    """Returns the bytes of the matrices that `dense` holds."""
    return float(_DENSE_MATRICES * _FLOAT_BYTES * size.rows * size.rows)


def roster() -> tuple[Contender, ...]:
    """Returns all contenders, ours first."""
    clip = "open_clip_torch"
    return (
        *(Contender("fused", variant, lambda v=variant: ours("fused", v), needs_cuda=True) for variant in VARIANTS),
        *(Contender("chunked", variant, lambda v=variant: ours("chunked", v)) for variant in VARIANTS),
        Contender("dense", PLAIN, lambda: dense, dense=dense_bytes),
        Contender("compiled", PLAIN, lambda: compiled(dense), dense=dense_bytes, compiles=True),
        Contender("open_clip", PLAIN, lambda: peers.open_clip, package=clip, dense=dense_bytes),
        Contender("open_clip", SIGMOID, lambda: peers.open_clip_sigmoid, package=clip, dense=dense_bytes),
        Contender("inf_cl", PLAIN, lambda: peers.inf_cl, package="inf-cl", needs_cuda=True),
        Contender("cce_exact", PLAIN, lambda: peers.cut_cross_entropy, package="cut-cross-entropy", needs_cuda=True),
        Contender("liger", PLAIN, lambda: peers.liger, package="liger-kernel", needs_cuda=True),
    )


GLOBAL = Subject(
    name="global",
    what="global contrastive loss",
    records="contrastive",
    variants=VARIANTS,
    roster=roster,
    draw=draw,
    small=lambda width: Size(_SMALL_ROWS, width),
    reference=lambda variant: ours("reference", variant),
    floor_flops=floor_flops,
    exact=pair_truth.exact,
)
