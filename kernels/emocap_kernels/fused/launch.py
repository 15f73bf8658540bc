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

    All kernels are started by this function, because type checkers do not understand the signature that Triton gives to
    a kernel. The parameters of this function accept any kernel and any arguments.
    """
    # A rank without rows has empty grids.
    if all(size > 0 for size in grid):
        kernel[grid](*arguments, **options)


def aligned(vectors: Tensor) -> Tensor:
    """Returns `vectors`, [rows, padded width], with rows that begin at addresses that are multiples of 16 bytes.

    If necessary, the rows are padded with zeros, which change no dot product of two rows. The same tensor is returned
    if it is aligned already.
    """
    missing = -vectors.shape[1] % (ALIGNMENT_BYTES // vectors.element_size())
    if missing:
        return pad(vectors, (0, missing))
    rows, width = vectors.shape
    # A view of a larger tensor may begin at any address, and `contiguous` would return it as it is.
    fits = vectors.stride() == (width, 1) and vectors.data_ptr() % ALIGNMENT_BYTES == 0
    return vectors if fits else vectors.new_empty(rows, width).copy_(vectors)


def tile_descriptor(vectors: Tensor, rows: int, depth: int) -> TensorDescriptor:
    """Returns a descriptor by which kernels load or store tiles [rows, depth] of a matrix that `aligned` returned.

    A matrix without rows cannot be described, so one row of zeros takes its place; no program reads it.
    """
    held = vectors if len(vectors) else vectors.new_zeros(1, vectors.shape[1])
    return TensorDescriptor.from_tensor(held, [rows, depth])
