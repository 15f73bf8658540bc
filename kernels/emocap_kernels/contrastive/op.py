"""The global loss: checks, the ranks' agreement, the gathers, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.contrastive import chunked, reference
from emocap_kernels.contrastive.problem import Features, Problem, Side, sides_needed
from emocap_kernels.distributed import (
    ALONE,
    Ranks,
    Span,
    agreed,
    gather_rows,
    gather_to_repeat,
    gather_to_split,
    ranks_of,
)
from emocap_kernels.errors import ArgumentError, NotSupportedError
from emocap_kernels.mining import Mining
from emocap_kernels.precision import FLOATS, compute_dtype, full_precision, scale_tensor
from emocap_kernels.result import LossResult, nothing

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Objective = Literal["infonce", "mil_nce", "sigmoid", "soft"]
Backend = Literal["auto", "reference", "chunked", "fused"]
OBJECTIVES = ("infonce", "mil_nce", "sigmoid", "soft")


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    *,
    objective: Objective = "infonce",
    bias: Tensor | float | None = None,
    mining: Mining | None = None,
    guide_image: Tensor | None = None,
    guide_text: Tensor | None = None,
    ids: Tensor | None = None,
    group: ProcessGroup | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Contrastive loss of the global batch with known and mined positives, both directions.

    Row r of every input belongs to sample r. Inputs are used as given: nothing is normalised or clamped.

    Args:
        image: [rows, width], unit vectors; rows may be 0 and may differ between ranks.
        text: [rows, width], unit vectors.
        scale: Inverse temperature, already exponentiated; 0-dim tensor or number.
        objective: Only `infonce` so far; the others are refused by name.
        bias: Of the objective `sigmoid`; None otherwise.
        mining: None for own pairs and equal ids only.
        guide_image: [rows, any width], replaces `image` where mining reads similarities; no gradient.
        guide_text: [rows, any width], replaces `text` there.
        ids: int64 [rows]; samples of equal id, on any rank, are always positives of each other.
        group: The ranks that share the batch; None means no communication. All of its ranks must call alike.
        backend: `auto` is `chunked` at every size: one block when the batch is small, so it is not slower there,
            and no change of rounding at some size.

    Raises:
        ArgumentError: If a value breaks its rule.
        ShapeError: If tensors do not fit together.
        NotSupportedError: For an objective or backend that is not built yet.
        RanksDisagreeError: If the ranks of the group were called differently.
    """
    inputs = _Inputs(image, text, scale, guide_image, guide_text, ids)
    ranks = ranks_of(group)
    names = _Names(objective, backend, biased=bias is not None)
    facts = agreed(ranks, lambda: _facts(inputs, mining, names), alike=_ALIKE, device=image.device)
    span = Span(counts=tuple(each["rows"] for each in facts), rank=ranks.rank)
    with full_precision(image.device):
        if span.total == 0:
            return nothing(image, text, scale)
        if backend == "reference":
            return reference.evaluate(_whole(inputs, mining, span, ranks))
        needs_gradient = any(each["text needs a gradient"] for each in facts)
        return chunked.evaluate(_one_sided(inputs, mining, span, ranks, needs_gradient=needs_gradient))


@dataclass(frozen=True, slots=True)
class _Inputs:
    image: Tensor
    text: Tensor
    scale: Tensor | float
    guide_image: Tensor | None
    guide_text: Tensor | None
    ids: Tensor | None


@dataclass(frozen=True, slots=True)
class _Names:
    objective: str
    backend: str
    biased: bool


_ALIKE = ("width", "dtype of image", "dtype of text", "ids", "guide_image", "guide_text", "backend", "mining")


def _facts(inputs: _Inputs, mining: Mining | None, names: _Names) -> Mapping[str, int]:
    """Checks the inputs of this rank, then says what the other ranks must know of them."""
    _check_names(names)
    _check_tensors(inputs)
    if mining is not None and mining.guide == "joint":
        _check_joint(inputs)
    return {
        "rows": len(inputs.image),
        "width": inputs.image.shape[1],
        "dtype of image": FLOATS.index(inputs.image.dtype),
        "dtype of text": FLOATS.index(inputs.text.dtype),
        "ids": int(inputs.ids is not None),
        "guide_image": 0 if inputs.guide_image is None else inputs.guide_image.shape[1],
        "guide_text": 0 if inputs.guide_text is None else inputs.guide_text.shape[1],
        "backend": checks.BACKENDS.index(names.backend),
        "mining": 0 if mining is None else crc32(repr(mining).encode()),
        "text needs a gradient": int(inputs.text.requires_grad),
    }


def _check_names(names: _Names) -> None:
    checks.check_choice("objective", names.objective, OBJECTIVES)
    if names.objective != "infonce":
        raise NotSupportedError(f"objective={names.objective!r} is not built yet; 'infonce' is.")
    if names.biased:
        raise ArgumentError("bias belongs to objective='sigmoid'; in 'infonce' it cancels. Pass bias=None.")
    checks.check_backend(names.backend)


def _check_tensors(inputs: _Inputs) -> None:
    image, text = inputs.image, inputs.text
    checks.check_floats("image", image, "rows", "width")
    checks.check_floats("text", text, "rows", "width")
    checks.check_same("the width of image", image.shape[1], "the width of text", text.shape[1])
    checks.check_scale("scale", inputs.scale)
    for name, given in (("text", text), ("guide_image", inputs.guide_image), ("guide_text", inputs.guide_text)):
        if given is not None:
            checks.check_floats(name, given, "rows", "width")
            checks.check_same("the number of rows of image", len(image), f"that of {name}", len(given))
            checks.check_device(name, given, image)
    if inputs.ids is not None:
        checks.check_indices("ids", inputs.ids, "rows")
        checks.check_same("the number of rows of image", len(image), "that of ids", len(inputs.ids))
        checks.check_device("ids", inputs.ids, image)


def _check_joint(inputs: _Inputs) -> None:
    image = inputs.image if inputs.guide_image is None else inputs.guide_image
    text = inputs.text if inputs.guide_text is None else inputs.guide_text
    checks.check_same(
        "with guide 'joint', the width of the image features", image.shape[1], "that of the text", text.shape[1]
    )


def _one_sided(inputs: _Inputs, mining: Mining | None, span: Span, ranks: Ranks, *, needs_gradient: bool) -> Problem:
    """This rank's images against all texts: only the texts travel, and what mining needs of the images."""
    dtype = compute_dtype(inputs.image, inputs.text)
    image = inputs.image.to(dtype).contiguous()
    text = gather_to_split(inputs.text, span, ranks, dtype=dtype, needs_gradient=needs_gradient).contiguous()
    features = None if mining is None else _features(inputs, mining, text.detach(), span, ranks)
    ids = None if inputs.ids is None else gather_rows(inputs.ids, span, ranks)
    scale = scale_tensor(inputs.scale, image, dtype)
    return Problem(image, text, scale, ids, mining, features, span, ranks)


def _whole(inputs: _Inputs, mining: Mining | None, span: Span, ranks: Ranks) -> Problem:
    """The whole batch on every rank."""
    dtype = compute_dtype(inputs.image, inputs.text)
    image = gather_to_repeat(inputs.image, span, ranks, dtype=dtype)
    text = gather_to_repeat(inputs.text, span, ranks, dtype=dtype)
    features = None
    if mining is not None:
        every = _features(inputs, mining, text.detach(), span, ranks, sides=("image", "text")).every
        features = Features(every, every, is_logit=False)
    ids = None if inputs.ids is None else gather_rows(inputs.ids, span, ranks)
    scale = scale_tensor(inputs.scale, image, dtype)
    return Problem(image, text, scale, ids, mining, features, span.whole(), ALONE)


def _features(
    inputs: _Inputs,
    mining: Mining,
    text: Tensor,
    span: Span,
    ranks: Ranks,
    sides: Iterable[Side] | None = None,
) -> Features:
    """Each side's guide features, those given or else its embeddings; of one dtype, at least float32.

    Args:
        inputs: This rank's.
        mining: Decides of which sides the whole batch is needed.
        text: [total, width], the gathered texts, which need not travel again.
        span: Where the local rows lie.
        ranks: Who holds the others.
        sides: The sides to gather; by default those that `mining` needs.
    """
    given: Mapping[Side, Tensor | None] = {"image": inputs.guide_image, "text": inputs.guide_text}
    embedded: Mapping[Side, Tensor] = {"image": inputs.image, "text": inputs.text}
    raw: dict[Side, Tensor] = {side: embedded[side] if guide is None else guide for side, guide in given.items()}
    dtype = compute_dtype(*raw.values(), text)
    own: dict[Side, Tensor] = {side: feature.detach().to(dtype) for side, feature in raw.items()}
    every: dict[Side, Tensor] = {}
    for side in sorted(sides_needed(mining) if sides is None else sides):
        arrived = side == "text" and inputs.guide_text is None
        every[side] = (text if arrived else gather_rows(raw[side], span, ranks)).to(dtype)
    return Features(own, every, is_logit=inputs.guide_image is None and inputs.guide_text is None)
