"""Cuts a long axis into blocks, so that one block of a matrix stays within a byte budget."""

from collections.abc import Iterator

import torch

# Such a block and its few temporaries are small compared with a batch of 8,192, but large enough for a matrix product
# at full speed. docs/method.md, section 5, states this size and the next one.
BLOCK_BYTES = 16 * 2**20

# A GPU needs more rows to fill its processors, and starts one kernel for each operation on a block.
GPU_BLOCK_BYTES = 128 * 2**20


def block_bytes_on(device: torch.device) -> int:
    """Returns the largest number of bytes that a block of scores may have on `device`."""
    return BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES


def ceil_div(length: int, size: int) -> int:
    """Returns the number of pieces of length `size` that are needed to cover `length`: the quotient, rounded up."""
    return -(-length // size)


def even_blocks(length: int, longest: int) -> list[slice]:
    """Returns slices that cover `range(length)` in order.

    No slice is longer than `longest` (values below 1 count as 1), and their lengths differ by at most 1. For example,
    `even_blocks(7, 3)` gives slices of 2, 2 and 3.
    """
    return list(_cut(length, max(1, longest)))


def _cut(length: int, longest: int) -> Iterator[slice]:
    number = ceil_div(length, longest)
    # Equal shares differ by 1 at most, whereas cutting off `longest` each time could leave a very short last block.
    for index in range(number):
        yield slice(index * length // number, (index + 1) * length // number)
