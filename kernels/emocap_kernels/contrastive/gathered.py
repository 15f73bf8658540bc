"""The inputs of all ranks brought together: what of them each backend needs on this rank."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from emocap_kernels.contrastive.inputs import Inputs
from emocap_kernels.contrastive.problem import Features, Problem, Side, sides_needed
from emocap_kernels.distributed import Ranks, Span, gather_rows, gather_to_repeat, gather_to_split
from emocap_kernels.precision import compute_dtype, product_dtype, scale_tensor


def one_sided(inputs: Inputs, span: Span, ranks: Ranks, *, needs_gradient: bool, narrow: bool) -> Problem:
    """This rank's images against all texts: only the texts travel, and what guides need of the images.

    Args:
        inputs: This rank's.
        span: Where the local rows lie.
        ranks: Who holds the others.
        needs_gradient: If any rank's texts need one.
        narrow: Half-precision vectors stay what they are, for matrix units that add their products in float32;
            otherwise they are widened.
    """
    typed = product_dtype if narrow else compute_dtype
    dtype = typed(inputs.image, inputs.text)
    image = inputs.image.to(dtype).contiguous()
    text = gather_to_split(inputs.text, span, ranks, dtype=dtype, needs_gradient=needs_gradient).contiguous()
    features = None
    if inputs.mining is not None or inputs.objective == "soft":
        dtype = typed(*inputs.guides().values(), text)
        features = _features(inputs, text.detach(), span, ranks, sides_needed(inputs.mining), dtype)
    return _problem(inputs, image, text, features, span, ranks)


def whole(inputs: Inputs, span: Span, ranks: Ranks) -> Problem:
    """The whole batch on every rank."""
    dtype = compute_dtype(inputs.image, inputs.text)
    image = gather_to_repeat(inputs.image, span, ranks, dtype=dtype)
    text = gather_to_repeat(inputs.text, span, ranks, dtype=dtype)
    features = None
    if inputs.mining is not None or inputs.objective == "soft":
        dtype = compute_dtype(*inputs.guides().values(), text)
        every = _features(inputs, text.detach(), span, ranks, ("image", "text"), dtype).every
        features = Features(every, every, is_logit=False)
    problem = _problem(inputs, image, text, features, span, ranks)
    return problem.alone()


def _problem(
    inputs: Inputs, image: Tensor, text: Tensor, features: Features | None, span: Span, ranks: Ranks
) -> Problem:
    dtype = compute_dtype(image, text)
    scale = scale_tensor(inputs.scale, image, dtype)
    return Problem(
        image=image,
        text=text,
        scale=scale,
        objective=inputs.objective,
        bias=scale_tensor(0.0 if inputs.bias is None else inputs.bias, image, dtype),
        guide_scale=(scale if inputs.guide_scale is None else scale_tensor(inputs.guide_scale, image, dtype)).detach(),
        ids=None if inputs.ids is None else gather_rows(inputs.ids, span, ranks),
        mining=inputs.mining,
        features=features,
        span=span,
        ranks=ranks,
    )


def _features(
    inputs: Inputs, text: Tensor, span: Span, ranks: Ranks, sides: Iterable[Side], dtype: torch.dtype
) -> Features:
    """Each side's guide features, all of one dtype; `text` are the gathered texts, which need not travel again."""
    guides = inputs.guides()
    own: dict[Side, Tensor] = {side: guide.detach().to(dtype).contiguous() for side, guide in guides.items()}
    every: dict[Side, Tensor] = {}
    for side in sorted(sides):
        arrived = side == "text" and inputs.guide_text is None
        every[side] = (text if arrived else gather_rows(guides[side], span, ranks)).to(dtype).contiguous()
    return Features(own, every, is_logit=inputs.guide_image is None and inputs.guide_text is None)
