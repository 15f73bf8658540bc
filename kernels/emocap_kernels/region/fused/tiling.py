"""Chooses the sizes of the tiles of the local loss. A tile has some sentences and the patches of one image.

The size of a tile depends on type, device and number of patches, never on values. The patches of a tile are cut into up
to three *pieces*, because the size of a piece must be a power of two. If an image has more patches than registers hold,
a kernel processes the patches in several *windows*, each as wide as all pieces together. Decision 12 gives the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from emocap_kernels.blocks import ceil_div, even_blocks
from emocap_kernels.fused.tiling import CHUNK_BYTES, INTERPRETED

# Largest size of the scores that are in memory at once. The sums over them need a few times as much.
SCORE_BYTES = 32 * 2**20
# Largest number of sentences of a chunk of gradients, so that enough images for a long product fit as well.
MAX_CHUNK_SENTENCES = 8192
# Number of programs that a launch should have: several waves on all processors.
PROGRAMS = 1024
# A matrix instruction with fewer columns is not faster, because its rows limit the speed.
MIN_FAST_COLUMNS = 32


@dataclass(frozen=True, slots=True)
class RegionTileConfig:
    """Holds the size of a tile, and the options with which kernels are compiled for it.

    Attributes:
        sentences: Number of sentences of the tile; `bS` in the kernels.
        pieces: Number of patches of each piece; `bP`, `bP_1` and `bP_2` in the kernels. 1 means that the piece does not
            exist.
        windows: Number of windows that cover the patches of an image.
        depth: Number of elements of each vector that are loaded and multiplied at once; `bD` in the kernels.
        warps: Number of warps of a program (`num_warps` of Triton).
        stages: Number of stages of software pipelining (`num_stages` of Triton).
        widen: Whether half-precision vectors are converted to float32 first. Only Triton's interpreter needs it,
            because its product of bfloat16 matrices is wrong.
    """

    sentences: int
    pieces: tuple[int, int, int]
    windows: int
    depth: int
    warps: int
    stages: int
    widen: bool = False

    def options(self) -> dict[str, int | str | bool]:
        """Returns the compile-time arguments of `pool_kernel` and `pool_backward_kernel` for this tile."""
        compiled = {"num_warps": self.warps, "num_stages": self.stages}
        names = zip(("bP", "bP_1", "bP_2"), self.pieces, strict=True)
        return {
            "bS": self.sentences,
            **dict(names),
            "bD": self.depth,
            "WINDOWS": self.windows,
            "PRECISION": "tf32x3",
            "WIDEN": self.widen,
            **({} if INTERPRETED else compiled),
        }


def region_tile_config(patches: int, dtype: torch.dtype, device: torch.device) -> RegionTileConfig:
    """Returns the size of a tile for images of `patches` patches each."""
    if INTERPRETED:
        return _config(patches, most=48, sentences=16, depth=32, warps=4, stages=1, widen=True)
    # sm_90 and sm_100 have 227 KiB of shared memory, and matrix units that read it.
    if torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return _config(patches, most=64, sentences=64, depth=32, warps=8, stages=3)
    if dtype == torch.float32:
        return _config(patches, most=208, sentences=64, depth=32, warps=8, stages=2)
    return _config(patches, most=256, sentences=128, depth=64, warps=8, stages=3)


def _config(
    patches: int, *, most: int, sentences: int, depth: int, warps: int, stages: int, widen: bool = False
) -> RegionTileConfig:
    # Windows of equal width: 257 patches become two windows of 144, not one of 256 and one of a single patch.
    windows = ceil_div(patches, most)
    pieces = pieces_of(ceil_div(patches, windows), most)
    return RegionTileConfig(sentences, pieces, ceil_div(patches, _width(pieces)), depth, warps, stages, widen)


def pieces_of(patches: int, most: int) -> tuple[int, int, int]:
    """Returns the sizes of up to three pieces that together cover `patches` patches in the least time.

    The time is that of the matrix units, which grows with the sum of the sizes; a piece of 16 takes as long as one of
    32. Each size is a power of two of at least 16, and the sum of the sizes is at most `most`. The size 1 marks a piece
    that does not exist, as in `pieces_of(144, 256) == (128, 16, 1)`. 196 patches get the pieces (128, 64, 16), because
    one piece of 256 takes 14 % more time (docs/log.md, 2026-11-23).
    """
    sizes = [1, *(size for size in (16, 32, 64, 128, 256) if size <= most)]
    found = [
        each
        for each in product(sizes[1:], sizes, sizes)
        if each[0] >= each[1] >= each[2] and patches <= _width(each) <= most
    ]
    # The least cost wins, and of equal costs the fewest pieces. A piece of 16 costs as much as one of 32.
    return min(
        found, key=lambda each: (sum(max(size, MIN_FAST_COLUMNS) for size in each if size > 1), _count(each), each)
    )


def _width(pieces: tuple[int, int, int]) -> int:
    return sum(size for size in pieces if size > 1)


def _count(pieces: tuple[int, int, int]) -> int:
    return sum(size > 1 for size in pieces)


def score_chunks(images: int, sentences: int) -> list[slice]:
    """Cuts `images` images into slices. The scores of a slice with `sentences` sentences fit into `SCORE_BYTES`."""
    return even_blocks(images, SCORE_BYTES // (4 * sentences))


def gradient_chunks(images: int, sentences: int, pair_bytes: int) -> tuple[list[slice], list[slice]]:
    """Cuts `images` images, and the `sentences` sentences of a block, into slices.

    A slice of images and a slice of sentences form a chunk. Only the gradients of one chunk are in memory at a time.
    `pair_bytes` is the number of bytes that the gradients of one pair of image and sentence need.
    """
    columns = even_blocks(sentences, min(MAX_CHUNK_SENTENCES, CHUNK_BYTES // pair_bytes))
    longest = max(block.stop - block.start for block in columns)
    return even_blocks(images, CHUNK_BYTES // (pair_bytes * longest)), columns


def image_strips(images: int, sentences: int, tile: RegionTileConfig) -> tuple[int, int]:
    """Cuts `images` images into strips, and returns (number of strips, number of images in a strip).

    One program of a kernel computes the scores, or the gradients, of one strip of images with one tile of sentences.
    """
    wanted = max(1, PROGRAMS // ceil_div(sentences, tile.sentences))
    strip = max(1, ceil_div(images, wanted))
    return ceil_div(images, strip), strip
