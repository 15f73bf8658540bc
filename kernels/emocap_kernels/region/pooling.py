"""Computes the attention weights by which a sentence pools the patches of an image.

The backends `reference` and `chunked` use `pooling_weights`. The kernels of `fused` compute the same weights in
registers (`fused.kernels.pooling`). `region_attention` returns the weights of chosen pairs of sentence and image, for
example for a plot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.precision import compute_dtype, full_precision


def pooling_weights(similarity: Tensor, sharpness: float, kept: Tensor | None) -> Tensor:
    """Returns the softmax of `sharpness * similarity` over the kept patches. Other patches get the weight 0.

    If no patch of an image is kept, all of its weights are 0.

    Args:
        similarity: [..., images, patches].
        sharpness: At least 0.
        kept: Bool [images, patches], True for patches that are kept; None keeps all.
    """
    logits = similarity * sharpness
    if kept is None:
        return logits.softmax(-1)
    # The smallest number instead of -inf: the softmax over an image of which no patch is kept would be NaN. The product
    # makes its weights 0.
    return logits.masked_fill(~kept, torch.finfo(logits.dtype).min).softmax(-1) * kept


def region_attention(
    patches: Tensor,
    sentences: Tensor,
    image: Tensor,
    *,
    sharpness: float = 10.0,
    patch_mask: Tensor | None = None,
) -> Tensor:
    """Returns the attention weights of `region_contrastive_loss` for given pairs of sentence and image.

    The weights show which parts of the image a sentence is about, for instance as a map over a face. Only some pairs
    are computed at a time, so memory is linear in the inputs and the result.

    Args:
        patches: [rows, patches, width], unit vectors.
        sentences: [pairs, width], unit vectors, one for each pair.
        image: int64 [pairs], the row of `patches` with the image of each pair.
        sharpness: The value that the loss uses, at least 0.
        patch_mask: Bool [rows, patches], True for patches that are kept; None keeps all.

    Returns:
        [pairs, patches], at least float32, without a gradient. Each row sums to 1, or to 0 if no patch is kept.

    Raises:
        ArgumentError: If the value of an argument is not allowed.
        ShapeError: If tensors do not fit together.

    Example:
        ```python
        weights = region_attention(patches, sentences[:3], owner[:3])  # [3, patches]
        ```
    """
    checks.check_regions(patches, sentences, image, patch_mask, owner="image")
    checks.check_sharpness(sharpness)
    dtype = compute_dtype(patches, sentences)
    _, number, width = patches.shape
    # Each pair takes a copy of the patches of its image.
    together = block_bytes_on(patches.device) // max(1, dtype.itemsize * number * width)
    found = sentences.new_empty(len(sentences), number, dtype=dtype)
    with torch.no_grad(), full_precision(patches.device):
        for part in even_blocks(len(sentences), together):
            similarity = torch.einsum("npd,nd->np", patches[image[part]].to(dtype), sentences[part].to(dtype))
            kept = None if patch_mask is None else patch_mask[image[part]]
            if kept is not None:
                # A patch that is not kept may hold NaN.
                similarity = similarity.masked_fill(~kept, 0.0)
            found[part] = pooling_weights(similarity, sharpness, kept)
    return found
