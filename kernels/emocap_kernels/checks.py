"""What both public functions require of their tensors, said with the value, the rule and the cure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emocap_kernels.errors import ArgumentError, NotSupportedError, ShapeError
from emocap_kernels.precision import FLOATS

BACKENDS = ("auto", "reference", "chunked", "fused")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r} is unknown; it must be one of {', '.join(allowed)}.")


def check_floats(name: str, tensor: Tensor, *axes: str) -> None:
    if tensor.dtype not in FLOATS:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in FLOATS)
        raise ShapeError(f"{name} is {tensor.dtype}; it must be one of {kinds}.")
    if tensor.dim() != len(axes):
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; it must be [{', '.join(axes)}].")


def check_indices(name: str, tensor: Tensor, axis: str) -> None:
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise ShapeError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be int64 of shape [{axis}]."
        )


def check_same(left: str, left_size: int, right: str, right_size: int) -> None:
    if left_size != right_size:
        raise ShapeError(f"{left} is {left_size} and {right} is {right_size}; they must be equal.")


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ShapeError(f"{name} is on {tensor.device} and the other inputs on {like.device}; move it there.")


def check_scale(name: str, scale: Tensor | float) -> None:
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.is_floating_point():
            raise ShapeError(f"{name} is {scale.dtype} of shape {tuple(scale.shape)}; it must be one floating number.")
    elif not math.isfinite(scale):
        raise ArgumentError(f"{name}={scale} must be finite.")


def check_mask(name: str, mask: Tensor | None, patches: Tensor) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != patches.shape[:2]:
        raise ShapeError(
            f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool of shape {tuple(patches.shape[:2])}."
        )
    check_device(name, mask, patches)


def check_sharpness(sharpness: float) -> None:
    if not math.isfinite(sharpness) or sharpness < 0:
        raise ArgumentError(f"sharpness={sharpness} must be finite and at least 0.")


def check_regions(patches: Tensor, sentences: Tensor, images: Tensor, patch_mask: Tensor | None, *, owner: str) -> None:
    """Patches, sentences, and for each sentence an image, in an argument called `owner`."""
    check_floats("patches", patches, "rows", "patches", "width")
    check_floats("sentences", sentences, "sentences", "width")
    check_same("the width of patches", patches.shape[2], "that of sentences", sentences.shape[1])
    check_device("sentences", sentences, patches)
    check_indices(owner, images, "sentences")
    check_device(owner, images, patches)
    check_same("the number of sentences", len(sentences), f"that of {owner}", len(images))
    if patches.shape[1] == 0:
        raise ShapeError(f"patches has shape {tuple(patches.shape)}; an image needs at least one patch.")
    check_mask("patch_mask", patch_mask, patches)
    if len(images) > 0:
        _check_range(owner, images, len(patches))


def _check_range(name: str, images: Tensor, rows: int) -> None:
    if images.is_cuda:
        # The host would have to wait for the device; the device checks by itself.
        inside = (images >= 0) & (images < rows)
        torch._assert_async(inside.all(), f"{name} must name local rows, 0 to {rows - 1}.")  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return
    try:
        low, high = (int(end) for end in images.aminmax())
    except RuntimeError as error:
        raise NotSupportedError(
            f"the local loss reads the values of {name}, and meta and fake tensors have none; pass real tensors "
            "(contrastive_loss needs shapes alone)."
        ) from error
    if low < 0 or high >= rows:
        raise ArgumentError(f"{name} runs from {low} to {high}; it must name local rows, 0 to {rows - 1}.")
