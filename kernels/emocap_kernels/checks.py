"""Checks the arguments of both public losses. Every message names the value and the rule that it breaks.

The checks read shapes, types and devices. They read values only on the CPU, because on a GPU the host would wait for
the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emocap_kernels.errors import ArgumentError, NotSupportedError, ShapeError
from emocap_kernels.precision import FLOAT_DTYPES


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises an ArgumentError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r} is unknown; it must be one of {', '.join(allowed)}.")


def check_floats(name: str, tensor: Tensor, *axes: str) -> None:
    """Raises a ShapeError unless `tensor` has a supported floating-point type and one axis for each name in `axes`."""
    if tensor.dtype not in FLOAT_DTYPES:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in FLOAT_DTYPES)
        raise ShapeError(f"{name} is {tensor.dtype}; it must be one of {kinds}.")
    if tensor.dim() != len(axes):
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; it must be [{', '.join(axes)}].")


def check_indices(name: str, tensor: Tensor, axis: str) -> None:
    """Raises a ShapeError unless `tensor` is int64 of shape [axis]."""
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        raise ShapeError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; it must be int64 of shape [{axis}]."
        )


def check_equal(left: str, left_size: int, right: str, right_size: int) -> None:
    """Raises a ShapeError unless both sizes are equal.

    `left` and `right` name the two sizes in the error message.
    """
    if left_size != right_size:
        raise ShapeError(f"{left} is {left_size} and {right} is {right_size}; they must be equal.")


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """Raises a ShapeError unless both tensors are on the same device. `name` names `tensor` in the message."""
    if tensor.device != like.device:
        raise ShapeError(
            f"{name} is on {tensor.device} and the other inputs are on {like.device}; move it to {like.device}."
        )


def check_scale(name: str, scale: Tensor | float) -> None:
    """Raises an error unless `scale` is a finite number or a floating-point tensor of one element.

    The value of a tensor is not read, because the host would wait for the device.
    """
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.is_floating_point():
            raise ShapeError(
                f"{name} is {scale.dtype} of shape {tuple(scale.shape)}; it must be a floating-point tensor of one "
                "element."
            )
    elif not math.isfinite(scale):
        raise ArgumentError(f"{name}={scale} must be finite.")


def check_sharpness(sharpness: float) -> None:
    """Raises an ArgumentError unless `sharpness` is finite and at least 0."""
    if not math.isfinite(sharpness) or sharpness < 0:
        raise ArgumentError(f"sharpness={sharpness} must be finite and at least 0.")


def check_regions(patches: Tensor, sentences: Tensor, images: Tensor, patch_mask: Tensor | None, *, owner: str) -> None:
    """Checks patches, sentences, and the indices that say to which image each sentence belongs.

    Args:
        patches: [rows, patches, width], the patch vectors of `rows` images.
        sentences: [sentences, width].
        images: int64 [sentences], the row of `patches` that holds the image of each sentence, in [0, rows).
        patch_mask: Bool [rows, patches] or None.
        owner: The name that `images` has as an argument of the caller's function, for the error messages.

    Raises:
        ArgumentError: If an index is out of range. On a GPU an assertion on the device checks this instead, and a later
            call of CUDA reports the failure.
        ShapeError: If a tensor has a wrong shape, type or device.
        NotSupportedError: If `images` is a meta or a fake tensor, which has no values.
    """
    check_floats("patches", patches, "rows", "patches", "width")
    check_floats("sentences", sentences, "sentences", "width")
    check_equal("the width of patches", patches.shape[2], "the width of sentences", sentences.shape[1])
    check_device("sentences", sentences, patches)
    check_indices(owner, images, "sentences")
    check_device(owner, images, patches)
    check_equal("the number of sentences", len(sentences), f"the length of {owner}", len(images))
    if patches.shape[1] == 0:
        raise ShapeError(f"patches has shape {tuple(patches.shape)}; an image needs at least one patch.")
    if patch_mask is not None:
        if patch_mask.dtype != torch.bool or patch_mask.shape != patches.shape[:2]:
            raise ShapeError(
                f"patch_mask is {patch_mask.dtype} of shape {tuple(patch_mask.shape)}; it must be bool of shape "
                f"{tuple(patches.shape[:2])}."
            )
        check_device("patch_mask", patch_mask, patches)
    if len(images) > 0:
        _check_range(owner, images, len(patches))


def _check_range(name: str, images: Tensor, rows: int) -> None:
    if images.is_cuda:
        # A check on the host would wait for the device, so the device checks for itself. The host goes ahead, and a
        # failure appears at a later call of CUDA.
        inside = (images >= 0) & (images < rows)
        torch._assert_async(inside.all(), f"{name} must hold local row numbers, 0 to {rows - 1}.")  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return
    try:
        # `int` raises a RuntimeError for a meta or a fake tensor.
        low, high = (int(end) for end in images.aminmax())
    except RuntimeError as error:
        raise NotSupportedError(
            f"the local loss reads the values of {name}, and meta and fake tensors have none; pass real tensors "
            "(contrastive_loss needs only shapes)."
        ) from error
    if low < 0 or high >= rows:
        raise ArgumentError(
            f"{name} holds values from {low} to {high}; each must be the number of a local row, 0 to {rows - 1}."
        )
