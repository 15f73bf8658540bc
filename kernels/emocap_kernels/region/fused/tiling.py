"""Chooses the tiles of the local loss, each of which has some sentences and the patches of one image.

Their sizes depend on type, device and number of patches, never on values. A tile is made of up to three *pieces* of
patches, each a power of two. If an image has more patches than registers hold, a kernel goes over several *windows* of
patches, each as wide as all pieces together. Decision 12 gives the reasons.
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
        sentences: `bS`, sentences of the tile.
        pieces: `bP`, `bP_1`, `bP_2`, patches of each piece; 1 means that the piece does not exist.
        windows: Number of windows that cover the patches of an image.
        depth: `bD`, how many numbers of each vector are loaded and multiplied at once.
        warps: Warps of a program.
        stages: Pieces of the vectors that are loaded ahead (software pipelining).
        widen: Whether half-precision vectors are converted to float32 first. Only the interpreter needs it, because its
            bfloat16 dot is wrong.
    """

    sentences: int
    pieces: tuple[int, int, int]
    windows: int
    depth: int
    warps: int
    stages: int
    widen: bool = False

    def options(self) -> dict[str, int | str | bool]:
        """Returns the options of `pool_kernel` and `pool_backward_kernel` for this tile."""
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
    """Returns the tile size for images of `patches` patches."""
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
    """Returns the sizes of up to three pieces that cover `patches` at the least cost.

    Each size is a power of two of at least 16, and their sum is at most `most`. The size 1 marks a piece that does not
    exist, as in `pieces_of(144, 256) == (128, 16, 1)`. 196 patches get the pieces (128, 64, 16), because one piece of
    256 takes 14 % more time on the matrix units (docs/log.md, 2026-11-23).
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
    """Cuts the images into slices whose scores with all sentences of a block fit into `SCORE_BYTES`."""
    return even_blocks(images, SCORE_BYTES // (4 * sentences))


def gradient_chunks(images: int, sentences: int, pair_bytes: int) -> tuple[list[slice], list[slice]]:
    """Cuts the images and the sentences of a block into slices.

    A slice of images with a slice of sentences is a chunk. The gradients of one chunk at a time are in memory;
    `pair_bytes` is their number of bytes for each pair of image and sentence.
    """
    columns = even_blocks(sentences, min(MAX_CHUNK_SENTENCES, CHUNK_BYTES // pair_bytes))
    longest = max(block.stop - block.start for block in columns)
    return even_blocks(images, CHUNK_BYTES // (pair_bytes * longest)), columns


def image_strips(images: int, sentences: int, tile: RegionTileConfig) -> tuple[int, int]:
    """Returns (number of strips, number of images in each strip).

    One program computes the scores, or the gradients, of a strip of images with a tile of sentences.
    """
    wanted = max(1, PROGRAMS // ceil_div(sentences, tile.sentences))
    strip = max(1, ceil_div(images, wanted))
    return ceil_div(images, strip), strip
