"""The global loss: images and texts in pairs, and who is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pair_truth
import peers
import torch
from emocap_kernels import contrastive_loss
from subject import Contender, Loss, Size, Subject, compiled, leaf
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from variants import PLAIN, SIGMOID, VARIANTS, Variant, floor_flops

_GROUP_ROWS = 4
_SMALL_ROWS = 256
_FLOAT_BYTES = 4
# Counted with autograd in float32: scores, two log-softmaxes, and the gradients of two of these at a time.
_DENSE_MATRICES = 5


@dataclass(frozen=True, slots=True)
class Pairs:
    """Unit vectors `image` and `text` [rows, width]; `scale` and `bias` 0-dim; all may need gradients."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor

    @property
    def device(self) -> torch.device:
        return self.image.device

    def leaves(self, variant: Variant) -> list[Tensor]:
        return [self.image, self.text, self.scale, *([self.bias] if variant.objective == "sigmoid" else [])]

    def to(self, dtype: torch.dtype) -> Pairs:
        return Pairs(*(leaf(tensor, dtype) for tensor in (self.image, self.text, self.scale, self.bias)))


def draw(size: Size, dtype: torch.dtype, device: torch.device, *, seed: int = 0) -> Pairs:
    """A batch half way through training: own pairs stand out, groups of four rows resemble each other.

    The groups give mining something to find, at cosines that a rounding cannot move across the threshold.
    """
    source = torch.Generator(device).manual_seed(seed)
    rows = size.rows

    def noise(count: int) -> Tensor:
        return torch.randn(count, size.width, generator=source, device=device)

    shared = noise(-(-rows // _GROUP_ROWS)).repeat_interleave(_GROUP_ROWS, 0)[:rows]
    shared += noise(rows)
    image, text = (leaf(normalize(noise(rows).add_(shared), dim=1), dtype) for _ in range(2))
    # The usual starting values of the temperature and of the bias of a sigmoid loss.
    scale, bias = (leaf(torch.tensor(number, device=device), torch.float32) for number in (1 / 0.07, -10.0))
    return Pairs(image, text, scale, bias)


def ours(backend: Literal["reference", "chunked", "fused"], variant: Variant) -> Loss:
    def loss(batch: Pairs) -> Tensor:
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


def dense(batch: Pairs) -> Tensor:
    """The plainest PyTorch: one matrix, both directions of it, the softmax in at least float32."""
    scores = batch.image @ batch.text.T
    logits = batch.scale * (scores if scores.dtype == torch.float64 else scores.float())
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def dense_bytes(size: Size) -> float:
    return float(_DENSE_MATRICES * _FLOAT_BYTES * size.rows * size.rows)


def roster() -> tuple[Contender, ...]:
    """Everybody; ours first."""
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
    records="contrastive.jsonl",
    variants=VARIANTS,
    roster=roster,
    draw=draw,
    small=lambda width: Size(_SMALL_ROWS, width),
    reference=lambda variant: ours("reference", variant),
    floor_flops=floor_flops,
    exact=pair_truth.exact,
)
