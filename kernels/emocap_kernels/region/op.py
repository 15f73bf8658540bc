"""The local loss: checks, the ranks' agreement, the gathers, and the choice of a backend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from torch import Tensor

from emocap_kernels import checks
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
from emocap_kernels.errors import ArgumentError, ShapeError
from emocap_kernels.mining import Mining
from emocap_kernels.precision import FLOATS, compute_dtype, full_precision, scale_tensor
from emocap_kernels.region import chunked, reference, within
from emocap_kernels.region.problem import RegionProblem
from emocap_kernels.result import LossResult, nothing

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Scope = Literal["batch", "image"]
Backend = Literal["auto", "reference", "chunked", "fused"]
SCOPES = ("batch", "image")


def region_contrastive_loss(
    patches: Tensor,
    sentences: Tensor,
    owner: Tensor,
    scale: Tensor | float,
    *,
    sharpness: float = 10.0,
    scope: Scope = "batch",
    patch_mask: Tensor | None = None,
    mining: Mining | None = None,
    group: ProcessGroup | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Contrastive loss between image regions and local sentences, both directions.

    With scope `batch` every image of the global batch is scored by every sentence, over patches that the sentence
    itself weighs; with `image` the sentences of one image compete for its patches (`region.within`). Images without a
    sentence are candidates, not anchors. Inputs are used as given: nothing is normalised or clamped.

    Args:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors; any number for an image, also none.
        owner: int64 [sentences], the local row that each sentence belongs to, in any order.
        scale: Inverse temperature, already exponentiated; 0-dim tensor or number.
        sharpness: Of the softmax over patches; 0 is the mean over patches, large values approach the best patch.
            Not read with scope `image`.
        scope: `batch` or `image`.
        patch_mask: Bool [rows, patches], True is kept; an image of which none is kept scores 0 everywhere.
        mining: By sentence-sentence similarity, whatever its guide says; only with scope `batch`.
        group: The ranks that share the batch; None means no communication. All of its ranks must call alike.
        backend: `auto` is `chunked` at every size, as in `contrastive_loss`.

    Raises:
        ArgumentError: If a value breaks its rule.
        ShapeError: If tensors do not fit together.
        NotSupportedError: For a backend that is not built yet.
        RanksDisagreeError: If the ranks of the group were called differently.
    """
    inputs = _Inputs(patches, sentences, owner, scale, patch_mask)
    settings = _Settings(float(sharpness), scope, mining, backend)
    ranks = ranks_of(group)
    facts = agreed(ranks, lambda: _facts(inputs, settings), alike=_ALIKE, device=patches.device)
    images = Span(counts=tuple(each["rows"] for each in facts), rank=ranks.rank)
    lines = Span(counts=tuple(each["sentences"] for each in facts), rank=ranks.rank)
    with full_precision(patches.device):
        if lines.total == 0:
            return nothing(patches, sentences, scale)
        place = _Place(images, lines, ranks)
        if backend == "reference":
            evaluate = reference.evaluate if scope == "batch" else reference.evaluate_within
            return evaluate(_whole(inputs, settings, place))
        if scope == "image":
            return within.evaluate(_own(inputs, settings, place))
        needs_gradient = any(each["sentences need a gradient"] for each in facts)
        return chunked.evaluate(_one_sided(inputs, settings, place, needs_gradient=needs_gradient))


@dataclass(frozen=True, slots=True)
class _Inputs:
    patches: Tensor
    sentences: Tensor
    owner: Tensor
    scale: Tensor | float
    patch_mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Settings:
    sharpness: float
    scope: str
    mining: Mining | None
    backend: str


@dataclass(frozen=True, slots=True)
class _Place:
    images: Span
    lines: Span
    ranks: Ranks


_ALIKE = ("patches of an image", "width", "dtype of patches", "dtype of sentences", "patch_mask", "settings")


def _facts(inputs: _Inputs, settings: _Settings) -> Mapping[str, int]:
    """Checks the inputs of this rank, then says what the other ranks must know of them."""
    _check_settings(settings)
    _check_tensors(inputs)
    _check_owner(inputs)
    return {
        "rows": len(inputs.patches),
        "sentences": len(inputs.sentences),
        "patches of an image": inputs.patches.shape[1],
        "width": inputs.patches.shape[2],
        "dtype of patches": FLOATS.index(inputs.patches.dtype),
        "dtype of sentences": FLOATS.index(inputs.sentences.dtype),
        "patch_mask": int(inputs.patch_mask is not None),
        "settings": crc32(repr(settings).encode()),
        "sentences need a gradient": int(inputs.sentences.requires_grad),
    }


def _check_settings(settings: _Settings) -> None:
    checks.check_choice("scope", settings.scope, SCOPES)
    checks.check_backend(settings.backend)
    if not math.isfinite(settings.sharpness) or settings.sharpness < 0:
        raise ArgumentError(f"sharpness={settings.sharpness} must be finite and at least 0.")
    if settings.scope == "image" and settings.mining is not None:
        raise ArgumentError("mining looks for sentences of other images, and scope='image' has none; pass None.")


def _check_tensors(inputs: _Inputs) -> None:
    patches, sentences = inputs.patches, inputs.sentences
    checks.check_floats("patches", patches, "rows", "patches", "width")
    checks.check_floats("sentences", sentences, "sentences", "width")
    checks.check_same("the width of patches", patches.shape[2], "that of sentences", sentences.shape[1])
    checks.check_device("sentences", sentences, patches)
    checks.check_indices("owner", inputs.owner, "sentences")
    checks.check_device("owner", inputs.owner, patches)
    checks.check_same("the number of sentences", len(sentences), "that of owners", len(inputs.owner))
    checks.check_scale("scale", inputs.scale)
    if patches.shape[1] == 0:
        raise ShapeError(f"patches has shape {tuple(patches.shape)}; an image needs at least one patch.")
    checks.check_mask("patch_mask", inputs.patch_mask, patches)


def _check_owner(inputs: _Inputs) -> None:
    if len(inputs.owner) == 0:
        return
    low, high = (int(end) for end in inputs.owner.aminmax())
    if low < 0 or high >= len(inputs.patches):
        raise ArgumentError(
            f"owner runs from {low} to {high}; it must name local rows, 0 to {len(inputs.patches) - 1}."
        )


def _one_sided(inputs: _Inputs, settings: _Settings, place: _Place, *, needs_gradient: bool) -> RegionProblem:
    """This rank's images against all sentences: only the sentences travel."""
    dtype = compute_dtype(inputs.patches, inputs.sentences)
    sentences = gather_to_split(inputs.sentences, place.lines, place.ranks, dtype=dtype, needs_gradient=needs_gradient)
    owner = gather_rows(inputs.owner + place.images.first, place.lines, place.ranks)
    patches = inputs.patches.to(dtype)
    return _problem(inputs, settings, place, patches, sentences, owner, inputs.patch_mask)


def _own(inputs: _Inputs, settings: _Settings, place: _Place) -> RegionProblem:
    """This rank's images and its own sentences; no vector travels."""
    dtype = compute_dtype(inputs.patches, inputs.sentences)
    patches, sentences = inputs.patches.to(dtype), inputs.sentences.to(dtype)
    owner = inputs.owner + place.images.first
    return _problem(inputs, settings, place, patches, sentences, owner, inputs.patch_mask)


def _whole(inputs: _Inputs, settings: _Settings, place: _Place) -> RegionProblem:
    """The whole batch on every rank."""
    dtype = compute_dtype(inputs.patches, inputs.sentences)
    patches = gather_to_repeat(inputs.patches, place.images, place.ranks, dtype=dtype)
    sentences = gather_to_repeat(inputs.sentences, place.lines, place.ranks, dtype=dtype)
    owner = gather_rows(inputs.owner + place.images.first, place.lines, place.ranks)
    mask = inputs.patch_mask
    mask = None if mask is None else gather_rows(mask, place.images, place.ranks)
    everywhere = _Place(place.images.whole(), place.lines.whole(), ALONE)
    return _problem(inputs, settings, everywhere, patches, sentences, owner, mask)


def _problem(
    inputs: _Inputs,
    settings: _Settings,
    place: _Place,
    patches: Tensor,
    sentences: Tensor,
    owner: Tensor,
    mask: Tensor | None,
) -> RegionProblem:
    if mask is not None:
        # Whatever lies in a patch that is not kept, NaN included, must not reach a product.
        patches = patches.masked_fill(~mask[:, :, None], 0.0)
    return RegionProblem(
        patches=patches.contiguous(),
        sentences=sentences.contiguous(),
        owner=owner,
        scale=scale_tensor(inputs.scale, patches, patches.dtype),
        sharpness=settings.sharpness,
        patch_mask=mask,
        mining=settings.mining,
        images=place.images,
        lines=place.lines,
        ranks=place.ranks,
    )
