"""Starts Triton kernels, and makes the descriptors by which kernels load and store tiles of a matrix.

A descriptor describes a whole matrix in memory. Loads beyond its end give zeros, and stores there have no effect, so
kernels need no masks for them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

# To copy a tile, the hardware needs rows that begin at addresses that are multiples of this many bytes.
ALIGNMENT_BYTES = 16


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Starts `kernel` on a grid of programs, or does nothing if the grid is empty.

    All kernels are started here, because no type checker understands the signature that Triton makes of a kernel.
    """
    # A rank without rows has empty grids.
    if all(size > 0 for size in grid):
        kernel[grid](*arguments, **options)


def aligned(vectors: Tensor) -> Tensor:
    """Returns `vectors` with rows that begin on multiples of 16 bytes, [rows, width padded with zeros].

    The same tensor is returned if it is aligned already. The zeros change no product of two padded vectors.
    """
    missing = -vectors.shape[1] % (ALIGNMENT_BYTES // vectors.element_size())
    if missing:
        return pad(vectors, (0, missing))
    rows, width = vectors.shape
    # A view of a larger tensor may begin at any address, and `contiguous` would return it as it is.
    fits = vectors.stride() == (width, 1) and vectors.data_ptr() % ALIGNMENT_BYTES == 0
    return vectors if fits else vectors.new_empty(rows, width).copy_(vectors)


def tile_descriptor(vectors: Tensor, rows: int, depth: int) -> TensorDescriptor:
    """Returns a descriptor of tiles [rows, depth] of an aligned matrix.

    A matrix without rows cannot be described, so one row of zeros takes its place; no program reads it.
    """
    held = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
    return TensorDescriptor.from_tensor(held, [rows, depth])
