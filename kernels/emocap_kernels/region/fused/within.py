"""Computes the local loss within each image by fused Triton kernels.

The formula is that of `region.within`. Forward starts two kernels: the first one pools the patches, and the second one
compares the pooled vectors with the sentences. Between the two kernels, torch normalises the pooled vectors to unit
length. Backward takes the same three steps in reverse. No vector is sent between ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from emocap_kernels.distributed.ranks import Partition, Ranks
from emocap_kernels.distributed.reductions import sum_over_ranks
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.tiling import INTERPRETED
from emocap_kernels.precision import product_dtype, scale_tensor
from emocap_kernels.region.fused.kernels import within as kernels
from emocap_kernels.region.inputs import RegionInputs
from emocap_kernels.result import Directions, LossResult
from emocap_kernels.transforms import once_differentiable

# Own sentences of an image that are taken together, and the width of the pieces in which vectors are loaded. The width
# is one sector of memory, and small enough that the gradients of 256 patches fit into registers together with their
# similarities.
SENTENCES, DEPTH = 16, 16
# The default of `torch.nn.functional.normalize`.
MIN_NORM = 1e-12


@dataclass(frozen=True, slots=True)
class _WithinPlan:
    """Holds the values that forward and backward share.

    Attributes:
        kept: uint8 [images, patches], 1 for patches that are kept; None keeps all.
        starts: int32 [images + 1], the index of each image's first sentence, and at the end the number of sentences.
        weight: float64 [sentences], the weight of each sentence in the loss. The weighted sum is a mean over the
            sentences of each image, and then over all images of the global batch that have a sentence.
        ranks: The ranks of the batch.
    """

    kept: Tensor | None
    starts: Tensor
    weight: Tensor
    ranks: Ranks

    @staticmethod
    def of(inputs: RegionInputs, owner: Tensor, images: Partition, ranks: Ranks) -> _WithinPlan:
        """Returns the plan for sentences that are sorted by image.

        `owner` holds, for each sentence, the local index of its image. This is a collective, because it counts the
        images that have sentences over all ranks: all ranks must call it.
        """
        edges = torch.arange(images.local + 1, device=owner.device)
        starts = torch.searchsorted(owner, edges)
        counts = starts.diff()
        anchors = sum_over_ranks((counts > 0).sum().double(), ranks)
        weight = 1.0 / (counts[owner] * anchors)
        kept = None if inputs.patch_mask is None else inputs.patch_mask.to(torch.uint8).contiguous()
        return _WithinPlan(kept, starts.int(), weight, ranks)


def evaluate(
    inputs: RegionInputs, image_partition: Partition, sentence_partition: Partition, ranks: Ranks
) -> LossResult:
    """Returns the local loss of scope `image`, for vectors in float32 or a half precision.

    With this scope, sentences are compared only with patches of their own image.

    This is a collective: all ranks must call it.
    """
    # Sorted by image, so that a kernel finds the sentences of an image in consecutive rows. Autograd brings the
    # gradient of the sentences back to the caller's order, because the indexing is outside of `_Within`.
    patches, order = inputs.zeroed_patches(), inputs.owner.sort(stable=True)
    dtype = product_dtype(patches, inputs.sentences)
    sentences = inputs.sentences.to(dtype)[order.indices].contiguous()
    scale = scale_tensor(inputs.scale, patches, torch.float32)
    with torch.cuda.device_of(patches):
        with torch.no_grad():
            plan = _WithinPlan.of(inputs, order.values, image_partition, ranks)
        loss, sums = _Within.apply(patches.to(dtype).contiguous(), sentences, scale, plan)  # pyright: ignore[reportGeneralTypeIssues]
    image_to_text, text_to_image, image_hits, text_hits = sums.unbind()
    recall = Directions(image_hits / sentence_partition.total, text_hits / sentence_partition.total)
    return LossResult(loss, image_to_text, text_to_image, torch.ones_like(image_to_text), recall)


class _Within(Function):
    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, sentences: Tensor, scale: Tensor, plan: _WithinPlan
    ) -> tuple[Tensor, Tensor]:
        number, (images, patches_of_image, width) = len(sentences), patches.shape
        pooled = sentences.new_empty(number, width, dtype=torch.float32)
        launch(
            kernels.pool_kernel,
            (images,),
            patches,
            plan.kept,
            sentences,
            plan.starts,
            pooled,
            patches_of_image,
            width,
            **patch_options(patches, masked=plan.kept is not None),
            **options(patches.dtype),
        )
        # An image without a kept patch pools zeros, which stay zeros.
        norm = pooled.norm(dim=1, keepdim=True)
        unit = pooled / norm.clamp(min=MIN_NORM)
        fields = pooled.new_empty(kernels.N_FIELDS, number)
        launch(
            kernels.loss_kernel,
            (images,),
            unit,
            sentences,
            plan.starts,
            scale,
            fields,
            number,
            width,
            **options(patches.dtype),
        )
        ctx.plan = plan
        ctx.save_for_backward(patches, sentences, scale, unit, norm, fields, plan.kept)
        # The first four fields are losses and hits. The weights turn the losses into means, and hits are only counted.
        of_sentence = fields[: kernels.IMAGE_LOG_SUM.value].double()
        local_sums = torch.cat([(of_sentence[:2] * plan.weight).sum(1), of_sentence[2:].sum(1)])
        sums = sum_over_ranks(local_sums, plan.ranks).float()
        ctx.mark_non_differentiable(sums)
        return (sums[0] + sums[1]) / 2, sums

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        patches, sentences, scale, unit, norm, fields, _ = ctx.saved_tensors
        plan: _WithinPlan = ctx.plan
        # Each rank returns its part of the global gradient; a mean over ranks must give the sum of the parts.
        weight = (plan.weight.float() * grad_outputs[0] * (plan.ranks.size / 2))[:, None]
        with torch.cuda.device_of(patches):
            by_unit, by_sentence, by_scale = _score_gradients(unit, sentences, scale, fields, plan)
            # All sentences of an image have the same weight, so it can be applied after the kernel.
            by_unit, by_sentence = by_unit * (weight * scale), by_sentence * (weight * scale)
            # This is the backward of the normalisation of the pooled vectors.
            by_pooled = by_unit - unit * (unit * by_unit).sum(1, keepdim=True)
            by_pooled = torch.where(norm > MIN_NORM, by_pooled / norm, 0.0)
            by_patch = _pool_backward(patches, sentences, by_pooled, by_sentence, plan)
        return by_patch, by_sentence.to(sentences.dtype), (by_scale.double() * weight[:, 0]).sum().float(), None


def _score_gradients(
    unit: Tensor, sentences: Tensor, scale: Tensor, fields: Tensor, plan: _WithinPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of the sum of all losses with respect to the three inputs of the scores.

    The inputs are the pooled vectors of unit length (`unit`), the sentences and the scale. The gradients of the two
    kinds of vectors lack the factor `scale`. The third result has one number for each sentence; their sum is the
    gradient of the scale. The gradient of the sentences does not contain the part that comes through the pooled
    vectors; `_pool_backward` adds it.
    """
    by_unit, by_sentence = torch.empty_like(unit), torch.empty_like(unit)
    by_scale = unit.new_empty(len(unit))
    launch(
        kernels.score_gradient_kernel,
        (len(plan.starts) - 1,),
        unit,
        sentences,
        plan.starts,
        scale,
        fields,
        by_unit,
        by_sentence,
        by_scale,
        len(unit),
        unit.shape[1],
        **options(sentences.dtype),
    )
    return by_unit, by_sentence, by_scale


def _pool_backward(
    patches: Tensor, sentences: Tensor, by_pooled: Tensor, by_sentence: Tensor, plan: _WithinPlan
) -> Tensor:
    """Returns the gradient of the patches, and completes the gradient of the sentences.

    `by_pooled` is the gradient of the pooled vectors before they got unit length. The part of the gradient of the
    sentences that comes through the pooled vectors is added to `by_sentence`.
    """
    images, patches_of_image, width = patches.shape
    by_patch = torch.empty_like(patches)
    launch(
        kernels.pool_backward_kernel,
        (images,),
        patches,
        plan.kept,
        sentences,
        plan.starts,
        by_pooled,
        by_patch,
        by_sentence,
        patches_of_image,
        width,
        **patch_options(patches, masked=plan.kept is not None),
        **options(patches.dtype),
    )
    return by_patch


def patch_options(patches: Tensor, *, masked: bool) -> dict[str, int | bool]:
    """Returns the options of the kernels that read patches. All patches of an image form one tile.

    `masked` says whether there is a mask of the patches that are kept.
    """
    together = max(16, 1 << (patches.shape[1] - 1).bit_length())
    return {"bP": together, "MASKED": masked, "WIDEN": INTERPRETED}


def options(dtype: torch.dtype) -> dict[str, int | str]:
    """Returns the options that all kernels of `kernels/within.py` get, for vectors of `dtype`."""
    # Converting a half is exact, and the other factors of its products need no more digits than tf32 has.
    precision = "tf32x3" if dtype == torch.float32 else "tf32"
    compiled = {} if INTERPRETED else {"num_warps": 8, "num_stages": 2}
    return {"bK": SENTENCES, "bD": DEPTH, "PRECISION": precision, **compiled}
