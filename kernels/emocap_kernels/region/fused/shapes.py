"""Tiles of sentences by the patches of an image: a function of dtype, device and number of patches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch

from emocap_kernels.blocks import ceil_div, even_blocks
from emocap_kernels.fused.shapes import CHUNK_BYTES, INTERPRETED

# Scores of a chunk; the sums over them take a few times as much.
SCORE_BYTES = 32 * 2**20
# Sentences of a chunk of gradients, so that images enough for a long product fit beside them.
LONGEST = 8192
# Programs of a launch: several waves on all processors.
PROGRAMS = 1024
# A matrix instruction of fewer columns waits for its rows.
NARROWEST = 32


@dataclass(frozen=True, slots=True)
class RegionShape:
    """One tile, and how it is compiled.

    Attributes:
        sentences: `bS`.
        pieces: `bP`, `bP_1`, `bP_2`; 1 for a piece that is not there.
        windows: How many tiles make up the patches of an image.
        depth: `bD`.
        warps: Of a program.
        stages: Strips of the vectors that are under way at once.
        widen: Only for the interpreter, whose dot of bfloat16 is wrong.
    """

    sentences: int
    pieces: tuple[int, int, int]
    windows: int
    depth: int
    warps: int
    stages: int
    widen: bool = False

    def options(self) -> dict[str, int | str | bool]:
        """The arguments that both kernels share."""
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


def region_shape(patches: int, dtype: torch.dtype, device: torch.device) -> RegionShape:
    """The tile for images of so many patches."""
    if INTERPRETED:
        return _shape(patches, most=48, sentences=16, depth=32, warps=4, stages=1, widen=True)
    # sm_90 and sm_100 have 227 KiB and matrix units that read it.
    if torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return _shape(patches, most=64, sentences=64, depth=32, warps=8, stages=3)
    if dtype == torch.float32:
        return _shape(patches, most=208, sentences=64, depth=32, warps=8, stages=2)
    return _shape(patches, most=256, sentences=128, depth=64, warps=8, stages=3)


def _shape(
    patches: int, *, most: int, sentences: int, depth: int, warps: int, stages: int, widen: bool = False
) -> RegionShape:
    windows = ceil_div(patches, most)
    pieces = pieces_of(ceil_div(patches, windows), most)
    return RegionShape(sentences, pieces, ceil_div(patches, _width(pieces)), depth, warps, stages, widen)


def pieces_of(patches: int, most: int) -> tuple[int, int, int]:
    """Up to three powers of two, at least 16 each, together at most `most`, that cover `patches` at the least cost."""
    sizes = [1, *(size for size in (16, 32, 64, 128, 256) if size <= most)]
    found = [
        each
        for each in product(sizes[1:], sizes, sizes)
        if each[0] >= each[1] >= each[2] and patches <= _width(each) <= most
    ]
    return min(found, key=lambda each: (sum(max(size, NARROWEST) for size in each if size > 1), _count(each), each))


def _width(pieces: tuple[int, int, int]) -> int:
    return sum(size for size in pieces if size > 1)


def _count(pieces: tuple[int, int, int]) -> int:
    return sum(size > 1 for size in pieces)


def score_chunks(images: int, sentences: int) -> list[slice]:
    """Images whose scores with all sentences of a block are held at once."""
    return even_blocks(images, SCORE_BYTES // (4 * sentences))


def gradient_chunks(images: int, sentences: int, pair_bytes: int) -> tuple[list[slice], list[slice]]:
    """Images, and sentences, whose gradients of `pair_bytes` for each pair are held at once."""
    columns = even_blocks(sentences, min(LONGEST, CHUNK_BYTES // pair_bytes))
    longest = max(block.stop - block.start for block in columns)
    return even_blocks(images, CHUNK_BYTES // (pair_bytes * longest)), columns


def image_strips(images: int, sentences: int, shape: RegionShape) -> tuple[int, int]:
    """(how many, images of one): programs that share a tile of sentences."""
    wanted = max(1, PROGRAMS // ceil_div(sentences, shape.sentences))
    strip = max(1, ceil_div(images, wanted))
    return ceil_div(images, strip), strip
