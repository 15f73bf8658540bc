"""Shared by the tests of the fused local loss: inputs, and the comparison with float64 and with eager code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from emocap_kernels import Mining, region_contrastive_loss
from emocap_kernels.numerics import require_accurate
from emocap_kernels.region.cases import RegionCase, RegionVectors, draw
from emocap_kernels.result import LossResult
from fused_cases import DEVICE
from torch import Tensor

RULES = (
    None,
    Mining("text", 0.2),
    Mining("text", top_k=3),
    Mining("text", 0.1, treatment="ignore"),
    Mining("text", 0.0, 4, treatment="ignore"),
)


@dataclass
class Answer:
    """A result, and the gradients by the names of the inputs."""

    result: LossResult
    gradients: dict[str, Tensor]


def answer(drawn: RegionVectors, case: RegionCase, backend: str, dtype: torch.dtype, **settings: Any) -> Answer:
    """Computes loss and gradients with vectors of type `dtype`.

    The scale is float64 for float64, and float32 for the other types.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {
        "patches": drawn.patches.to(DEVICE, dtype, copy=True).requires_grad_(),
        "sentences": drawn.sentences.to(DEVICE, dtype, copy=True).requires_grad_(),
        "scale": torch.tensor(case.scale, dtype=wide, device=DEVICE, requires_grad=True),
    }
    patches, sentences, scale = leaves.values()
    owner = drawn.owner.to(DEVICE)
    result = region_contrastive_loss(
        patches, sentences, owner, scale, sharpness=case.sharpness, backend=backend, **settings
    )
    result.loss.backward()
    return Answer(result, {name: leaf.grad for name, leaf in leaves.items()})


def require_as_accurate_as_eager(case: RegionCase, dtype: torch.dtype = torch.float32, **settings: Any) -> Answer:
    """Checks loss, both directions and every gradient of the fused kernels by the rule of `numerics`.

    Eager code is the reference in float32, also for halves. With halves, the fused kernels round only the vectors,
    which are equal for both, and the gradients of similarities and results, which the slack of the type covers.
    """
    rounded = draw(case, dtype=dtype)
    drawn = RegionVectors(rounded.patches.double(), rounded.sentences.double(), rounded.owner)
    mine = answer(drawn, case, "fused", dtype, **settings)
    exact = answer(drawn, case, "reference", torch.float64, **settings)
    eager = answer(drawn, case, "reference", torch.float32, **settings)
    for name in ("loss", "image_to_text", "text_to_image"):
        values = [getattr(each.result, name).detach().float() for each in (mine, eager)]
        truth = getattr(exact.result, name).detach()
        require_accurate(name, *values, truth, magnitude=max(case.scale, truth.abs().item()))
    for name, gradient in mine.gradients.items():
        truth = exact.gradients[name]
        # The largest term of the sums: attention times its slope, and weights of at most 2, times the scale.
        slope = 1.0 + case.sharpness
        size = max(truth.abs().max().item(), 1.0 if name == "scale" else case.scale * slope / case.rows)
        require_accurate(
            f"gradient of {name}", gradient, eager.gradients[name].to(gradient.dtype), truth, magnitude=size
        )
    torch.testing.assert_close(mine.result.positives.double(), exact.result.positives)
    return mine
