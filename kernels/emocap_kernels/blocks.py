"""Cuts a long axis into blocks, so that one block of a matrix stays within a byte budget."""

from collections.abc import Iterator

import torch

# Small enough that a block and its few temporaries are a fraction of a batch of 8,192, large enough that a matrix
# product runs at full speed (docs/method.md has the measurement).
BLOCK_BYTES = 16 * 2**20

# A GPU needs more rows to fill its processors, and starts one kernel for each operation on a block.
GPU_BLOCK_BYTES = 128 * 2**20


def block_bytes_on(device: torch.device) -> int:
    """Returns the largest number of bytes of one block of scores on `device`."""
    return BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES


def ceil_div(length: int, size: int) -> int:
    """Returns how many pieces of `size` cover `length`."""
    return -(-length // size)


def even_blocks(length: int, longest: int) -> list[slice]:
    """Returns slices that cover `range(length)` in order.

    None is longer than `longest` (at least 1), and their lengths differ by at most 1. For example,
    `even_blocks(7, 3)` gives slices of 2, 2 and 3.
    """
    return list(_cut(length, max(1, longest)))


def _cut(length: int, longest: int) -> Iterator[slice]:
    number = ceil_div(length, longest)
    for index in range(number):
        yield slice(index * length // number, (index + 1) * length // number)
