"""Matrices as the hardware's tile copies want them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

# Rows and strips of a tile copy begin on addresses of this many bytes.
ALIGNMENT = 16


def aligned(vectors: Tensor) -> Tensor:
    """[rows, width] whose rows begin on multiples of 16 bytes, filled up with zeros; the same tensor if it fits."""
    missing = -vectors.shape[1] % (ALIGNMENT // vectors.element_size())
    if missing:
        return pad(vectors, (0, missing))
    rows, width = vectors.shape
    fits = vectors.stride() == (width, 1) and vectors.data_ptr() % ALIGNMENT == 0
    return vectors if fits else vectors.new_empty(rows, width).copy_(vectors)


def tiled(vectors: Tensor, rows: int, depth: int) -> TensorDescriptor:
    """Describes tiles of `vectors`; a rank without rows describes one of zeros, of which no program asks."""
    held = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
    return TensorDescriptor.from_tensor(held, [rows, depth])
