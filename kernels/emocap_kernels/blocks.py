"""How a long axis is cut, so that one block of a matrix stays within a byte budget."""

from collections.abc import Iterator

import torch

# Small enough for a block and its few temporaries to be a fraction of a batch of 8,192, large enough for a matrix
# product to run at full speed (docs/method.md has the measurement).
BLOCK_BYTES = 16 * 2**20

# A GPU needs more rows to fill its processors, and a launch for each operation on a block.
DEVICE_BLOCK_BYTES = 128 * 2**20


def block_bytes_on(device: torch.device) -> int:
    return BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES


def ceil_div(length: int, size: int) -> int:
    """How many pieces of `size` cover `length`."""
    return -(-length // size)


def even_blocks(length: int, longest: int) -> list[slice]:
    """Slices that cover `range(length)`, none longer than `longest`, as equal in length as can be."""
    return list(_cut(length, max(1, longest)))


def _cut(length: int, longest: int) -> Iterator[slice]:
    number = ceil_div(length, longest)
    for index in range(number):
        yield slice(index * length // number, (index + 1) * length // number)
