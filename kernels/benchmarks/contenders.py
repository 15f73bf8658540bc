"""Who is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import peers
import torch
from batches import Batch
from emocap_kernels import contrastive_loss
from torch import Tensor
from torch.nn.functional import cross_entropy
from variants import PLAIN, SIGMOID, VARIANTS, Variant

Loss = Callable[[Batch], Tensor]
OURS = ("fused", "chunked")


@dataclass(frozen=True, slots=True)
class Contender:
    """A loss that somebody computes.

    Attributes:
        name: Who; together with the variant it is unique.
        variant: What is computed.
        build: Gives the loss anew; called once for every size.
        package: The distribution whose version matters; None for torch and ours.
        needs_cuda: Whether it cannot run on a CPU.
        dense: Whether it holds whole matrices of rows by rows.
        compiles: Whether its first call at a size costs more memory than the others.
    """

    name: str
    variant: Variant
    build: Callable[[], Loss]
    package: str | None = None
    needs_cuda: bool = False
    dense: bool = False
    compiles: bool = False

    @property
    def ours(self) -> bool:
        return self.name in OURS


def ours(backend: Literal["reference", "chunked", "fused"], variant: Variant) -> Loss:
    def loss(batch: Batch) -> Tensor:
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


def dense(batch: Batch) -> Tensor:
    """The plainest PyTorch: one matrix, both directions of it, the softmax in at least float32."""
    scores = batch.image @ batch.text.T
    logits = batch.scale * (scores if scores.dtype == torch.float64 else scores.float())
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def compiled() -> Loss:
    """`dense` for one size: without the reset, the compiler gives up after eight sizes."""
    torch.compiler.reset()
    return torch.compile(dense, fullgraph=True, dynamic=False)


def roster() -> tuple[Contender, ...]:
    """Everybody; ours first."""
    return (
        *(Contender("fused", variant, lambda v=variant: ours("fused", v), needs_cuda=True) for variant in VARIANTS),
        *(Contender("chunked", variant, lambda v=variant: ours("chunked", v)) for variant in VARIANTS),
        Contender("dense", PLAIN, lambda: dense, dense=True),
        Contender("compiled", PLAIN, compiled, dense=True, compiles=True),
        Contender("open_clip", PLAIN, lambda: peers.open_clip, package="open_clip_torch", dense=True),
        Contender("open_clip", SIGMOID, lambda: peers.open_clip_sigmoid, package="open_clip_torch", dense=True),
        Contender("inf_cl", PLAIN, lambda: peers.inf_cl, package="inf-cl", needs_cuda=True),
        Contender("cce_exact", PLAIN, lambda: peers.cut_cross_entropy, package="cut-cross-entropy", needs_cuda=True),
        Contender("liger", PLAIN, lambda: peers.liger, package="liger-kernel", needs_cuda=True),
    )
