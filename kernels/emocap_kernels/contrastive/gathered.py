"""The inputs of all ranks brought together: what of them each backend needs on this rank."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from emocap_kernels.contrastive.inputs import Inputs
from emocap_kernels.contrastive.problem import Features, Problem
from emocap_kernels.distributed.columns import Columns
from emocap_kernels.distributed.numbers import gather_rows, gather_to_repeat
from emocap_kernels.distributed.ranks import ALONE, Ranks, Span
from emocap_kernels.positives import SIDES, Side, sides_needed
from emocap_kernels.precision import compute_dtype, product_dtype, scale_tensor


def one_sided(inputs: Inputs, span: Span, ranks: Ranks, *, needs_gradient: bool, narrow: bool) -> Problem:
    """This rank's images against all texts: only the texts travel, and what guides need of the images.

    Args:
        inputs: This rank's.
        span: Where the local rows lie.
        ranks: Who holds the others.
        needs_gradient: If any rank's texts need one; then all take part in the backward, also a rank whose own need
            none (it may hold no rows).
        narrow: Half-precision vectors stay what they are, for matrix units that add their products in float32;
            otherwise they are widened.
    """
    typed = product_dtype if narrow else compute_dtype
    image = inputs.image.to(typed(inputs.image, inputs.text)).contiguous()
    text = inputs.text.contiguous()
    if needs_gradient and not text.requires_grad:
        text = text.detach().requires_grad_()
    formula = inputs.formula
    needed: set[Side] = set()
    if inputs.mining is not None:
        needed = sides_needed(inputs.mining)
    elif formula.has_teacher:
        needed = {"text"}
    sides: tuple[Side, ...] = tuple(side for side in SIDES if side in needed and _travels(inputs, side))
    local = [text, *(inputs.guides()[side] for side in sides)]
    kind = typed(*inputs.guides().values(), inputs.text)
    features = None
    if needed:
        own: dict[Side, Tensor] = {side: each.detach().to(kind).contiguous() for side, each in inputs.guides().items()}
        features = Features(own, inputs.guide_image is None and inputs.guide_text is None)
    dtype = compute_dtype(inputs.image, inputs.text)
    scale = scale_tensor(inputs.scale, image, dtype)
    return Problem(
        image=image,
        text=text,
        columns=Columns(local, span, ranks, inputs.schedule),
        sides=sides,
        scale=scale,
        objective=formula,
        bias=scale_tensor(0.0 if inputs.bias is None else inputs.bias, image, dtype),
        guide_scale=(scale if inputs.guide_scale is None else scale_tensor(inputs.guide_scale, image, dtype)).detach(),
        ids=None if inputs.ids is None else gather_rows(inputs.ids, span, ranks),
        mining=inputs.mining,
        features=features,
        feature_dtype=kind,
        span=span,
        ranks=ranks,
    )


def whole(inputs: Inputs, span: Span, ranks: Ranks) -> Problem:
    """The whole batch on every rank."""
    dtype = compute_dtype(inputs.image, inputs.text)
    guided = {"guide_image": inputs.guide_image, "guide_text": inputs.guide_text}
    everywhere = replace(
        inputs,
        image=gather_to_repeat(inputs.image, span, ranks, dtype=dtype),
        text=gather_to_repeat(inputs.text, span, ranks, dtype=dtype),
        ids=None if inputs.ids is None else gather_rows(inputs.ids, span, ranks),
        **{name: None if each is None else gather_rows(each, span, ranks) for name, each in guided.items()},
    )
    return one_sided(everywhere, span.whole(), ALONE, needs_gradient=False, narrow=False)


def _travels(inputs: Inputs, side: Side) -> bool:
    """The texts themselves are there already."""
    return side == "image" or inputs.guide_text is not None
