"""The inputs of all ranks brought together: what of them each backend needs on this rank."""

from __future__ import annotations

from dataclasses import replace

from emocap_kernels.distributed.columns import Columns
from emocap_kernels.distributed.numbers import gather_rows, gather_to_repeat
from emocap_kernels.distributed.ranks import ALONE, Ranks, Span
from emocap_kernels.precision import compute_dtype, product_dtype, scale_tensor
from emocap_kernels.region.inputs import Inputs
from emocap_kernels.region.problem import RegionProblem


def one_sided(
    inputs: Inputs, images: Span, lines: Span, ranks: Ranks, *, needs_gradient: bool, narrow: bool
) -> RegionProblem:
    """This rank's images against all sentences: only the sentences travel, patches never.

    Args:
        inputs: This rank's.
        images: Where the local images lie.
        lines: Where the local sentences lie.
        ranks: Who holds the others.
        needs_gradient: If any rank's sentences need one; then all take part in the backward, also a rank whose own
            need none (it may hold none).
        narrow: Half-precision vectors stay what they are, for matrix units that add their products in float32;
            otherwise they are widened.
    """
    patches, sentences = inputs.patches, inputs.sentences.contiguous()
    if needs_gradient and not sentences.requires_grad:
        sentences = sentences.detach().requires_grad_()
    if inputs.patch_mask is not None:
        # Whatever lies in a patch that is not kept, NaN included, must not reach a product.
        patches = patches.masked_fill(~inputs.patch_mask[:, :, None], 0.0)
    typed = product_dtype if narrow else compute_dtype
    return RegionProblem(
        patches=patches.to(typed(patches, sentences)).contiguous(),
        sentences=sentences,
        columns=Columns((sentences,), lines, ranks, inputs.schedule),
        owner=gather_rows(inputs.owner + images.first, lines, ranks),
        scale=scale_tensor(inputs.scale, patches, compute_dtype(patches, sentences)),
        sharpness=inputs.sharpness,
        patch_mask=inputs.patch_mask,
        mining=inputs.mining,
        images=images,
        lines=lines,
        ranks=ranks,
    )


def whole(inputs: Inputs, images: Span, lines: Span, ranks: Ranks) -> RegionProblem:
    """The whole batch on every rank."""
    dtype = compute_dtype(inputs.patches, inputs.sentences)
    mask = inputs.patch_mask
    everywhere = replace(
        inputs,
        patches=gather_to_repeat(inputs.patches, images, ranks, dtype=dtype),
        sentences=gather_to_repeat(inputs.sentences, lines, ranks, dtype=dtype),
        owner=gather_rows(inputs.owner + images.first, lines, ranks),
        patch_mask=None if mask is None else gather_rows(mask, images, ranks),
    )
    return one_sided(everywhere, images.whole(), lines.whole(), ALONE, needs_gradient=False, narrow=False)
