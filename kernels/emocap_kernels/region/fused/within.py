"""The local loss within one image by fused kernels: no vector travels, and every patch is read twice on either way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.distributed.numbers import sum_over
from emocap_kernels.distributed.ranks import Ranks, Span
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.shapes import INTERPRETED
from emocap_kernels.precision import product_dtype, scale_tensor
from emocap_kernels.region.fused.kernels import within as kernels
from emocap_kernels.region.inputs import Inputs
from emocap_kernels.result import Directions, LossResult
from emocap_kernels.transforms import first_order

# Own sentences of an image that are taken together, and the width of a strip of vectors: a sector of memory, and little
# enough for the gradients of 256 patches to lie beside their similarities in registers.
SENTENCES, DEPTH = 16, 16
# As torch's `normalize`.
LEAST_NORM = 1e-12


@dataclass(frozen=True, slots=True)
class _Plan:
    """What forward and backward share.

    Attributes:
        kept: uint8 [images, patches] or None.
        starts: Where the sentences of each image begin, int32 [images + 1].
        weight: Of each sentence in the mean over the sentences of an image, then over images that own any.
        ranks: Who holds the others.
    """

    kept: Tensor | None
    starts: Tensor
    weight: Tensor
    ranks: Ranks


def evaluate(inputs: Inputs, images: Span, lines: Span, ranks: Ranks) -> LossResult:
    """The loss of this rank's images and their own sentences, in float32 or a half precision."""
    patches, order = inputs.patches, inputs.owner.sort(stable=True)
    if inputs.patch_mask is not None:
        # Whatever lies in a patch that is not kept, NaN included, must not reach a product.
        patches = patches.masked_fill(~inputs.patch_mask[:, :, None], 0.0)
    dtype = product_dtype(patches, inputs.sentences)
    sentences = inputs.sentences.to(dtype)[order.indices].contiguous()
    scale = scale_tensor(inputs.scale, patches, torch.float32)
    with torch.cuda.device_of(patches):
        with torch.no_grad():
            plan = _planned(inputs, order.values, images, ranks)
        loss, seen = _Within.apply(patches.to(dtype).contiguous(), sentences, scale, plan)  # pyright: ignore[reportGeneralTypeIssues]
    image_to_text, text_to_image, by_image, by_text = seen.unbind()
    recall = Directions(by_image / lines.total, by_text / lines.total)
    return LossResult(loss, image_to_text, text_to_image, torch.ones_like(image_to_text), recall)


def _planned(inputs: Inputs, owner: Tensor, images: Span, ranks: Ranks) -> _Plan:
    edges = torch.arange(images.local + 1, device=owner.device)
    starts = torch.searchsorted(owner, edges)
    counts = starts.diff()
    anchors = sum_over((counts > 0).sum().double(), ranks)
    weight = 1.0 / (counts[owner] * anchors)
    kept = None if inputs.patch_mask is None else inputs.patch_mask.to(torch.uint8).contiguous()
    return _Plan(kept, starts.int(), weight, ranks)


class _Within(Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        number, (images, of_image, width) = len(sentences), patches.shape
        pooled = sentences.new_empty(number, width, dtype=torch.float32)
        launch(
            kernels.pool_kernel,
            (images,),
            patches,
            plan.kept,
            sentences,
            plan.starts,
            pooled,
            of_image,
            width,
            **patch_options(patches, masked=plan.kept is not None),
            **options(patches.dtype),
        )
        norm = pooled.norm(dim=1, keepdim=True)
        unit = pooled / norm.clamp(min=LEAST_NORM)
        lines = pooled.new_empty(kernels.LINES, number)
        launch(
            kernels.contrast_kernel,
            (images,),
            unit,
            sentences,
            plan.starts,
            scale,
            lines,
            number,
            width,
            **options(patches.dtype),
        )
        ctx.plan = plan
        ctx.save_for_backward(patches, sentences, scale, unit, norm, lines, plan.kept)
        of_sentence = lines[: kernels.IMAGE_LOG_SUM.value].double()
        sums = torch.cat([(of_sentence[:2] * plan.weight).sum(1), of_sentence[2:].sum(1)])
        seen = sum_over(sums, plan.ranks).float()
        ctx.mark_non_differentiable(seen)
        return (seen[0] + seen[1]) / 2, seen

    @staticmethod
    @first_order
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        patches, sentences, scale, unit, norm, lines, _ = ctx.saved_tensors
        plan: _Plan = ctx.plan
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        weight = (plan.weight.float() * grad_outputs[0] * (plan.ranks.size / 2))[:, None]
        with torch.cuda.device_of(patches):
            by_unit, by_sentence, by_scale = _by_scores(unit, sentences, scale, lines, plan)
            by_unit, by_sentence = by_unit * (weight * scale), by_sentence * (weight * scale)
            by_pooled = by_unit - unit * (unit * by_unit).sum(1, keepdim=True)
            by_pooled = torch.where(norm > LEAST_NORM, by_pooled / norm, 0.0)
            by_patch = _carried(patches, sentences, by_pooled, by_sentence, plan)
        return by_patch, by_sentence.to(sentences.dtype), (by_scale.double() * weight[:, 0]).sum().float(), None


def _by_scores(
    unit: Tensor, sentences: Tensor, scale: Tensor, lines: Tensor, plan: _Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the sum of all losses: in unit pooled vectors / scale, in sentences / scale, and each sentence's in scale."""
    by_unit, by_sentence = torch.empty_like(unit), torch.empty_like(unit)
    by_scale = unit.new_empty(len(unit))
    launch(
        kernels.score_gradient_kernel,
        (len(plan.starts) - 1,),
        unit,
        sentences,
        plan.starts,
        scale,
        lines,
        by_unit,
        by_sentence,
        by_scale,
        len(unit),
        unit.shape[1],
        **options(sentences.dtype),
    )
    return by_unit, by_sentence, by_scale


def _carried(patches: Tensor, sentences: Tensor, by_pooled: Tensor, by_sentence: Tensor, plan: _Plan) -> Tensor:
    """The gradient in the patches; that in the sentences is added to `by_sentence`."""
    images, of_image, width = patches.shape
    by_patch = torch.empty_like(patches)
    launch(
        kernels.carry_kernel,
        (images,),
        patches,
        plan.kept,
        sentences,
        plan.starts,
        by_pooled,
        by_patch,
        by_sentence,
        of_image,
        width,
        **patch_options(patches, masked=plan.kept is not None),
        **options(patches.dtype),
    )
    return by_patch


def patch_options(patches: Tensor, *, masked: bool) -> dict[str, int | bool]:
    """Of kernels that read patches: all patches of an image lie in one tile."""
    together = max(16, 1 << (patches.shape[1] - 1).bit_length())
    return {"bP": together, "MASKED": masked, "WIDEN": INTERPRETED}


def options(dtype: torch.dtype) -> dict[str, int | str]:
    """Of all kernels here, for vectors of `dtype`."""
    # Halves are widened exactly; what they are multiplied with needs no more digits than tf32 has.
    precision = "tf32x3" if dtype == torch.float32 else "tf32"
    compiled = {} if INTERPRETED else {"num_warps": 8, "num_stages": 2}
    return {"bK": SENTENCES, "bD": DEPTH, "PRECISION": precision, **compiled}
