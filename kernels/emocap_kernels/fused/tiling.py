"""Chooses the sizes of the pieces into which fused kernels cut a score matrix.

The sizes depend on the type and the device of the vectors and on the size of the matrix, never on values. There are
five kinds of pieces, from large to small. A *block* of columns has arrived together from other ranks. The statistics of
a *panel* of local rows are merged together. A *chunk* is the part of a panel's columns whose gradient, or mask, is in
memory at one time. A *strip* of columns is the work of one program, which goes over the strip *tile* by tile.

Tests replace the constants of this module, so that small batches have several panels and chunks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from emocap_kernels.blocks import ceil_div

# A half-open range of rows or columns: (first, end).
Range = tuple[int, int]

# Largest size of a chunk: of the gradient of its scores, or of its mask.
CHUNK_BYTES = 128 * 2**20
# Largest size of one statistic that the tiles of a panel store for each column.
PART_BYTES = 128 * 2**20
# Rows of a panel, if the bytes allow it. A chunk of 128 MiB then has as many columns, in half precision.
MAX_PANEL_ROWS = 8192
# Number of programs that a launch should have. With several waves on all processors, the last wave leaves few idle.
PROGRAMS = 2048

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Holds the size of a tile, and the options with which kernels are compiled for it.

    Attributes:
        rows: `bR`, rows of the tile.
        columns: `bC`, columns of the tile.
        depth: `bD`, number of elements of each vector that are loaded and multiplied at once.
        warps: Number of warps of a program.
        stages: Number of pieces of the vectors that are loaded ahead (software pipelining).
        precision: How float32 is multiplied. `tf32x3` adds three products of tf32 parts, which is accurate to float32
            except for its last bits.
        widen: Whether half-precision vectors are converted to float32 first. Only Triton's interpreter needs it,
            because its product of bfloat16 matrices is wrong.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    precision: str = "tf32x3"
    widen: bool = False

    def options(self) -> dict[str, int | str | bool]:
        """Returns the compile-time options of a kernel that computes tiles of this size."""
        # A score must be the same number in every kernel. Therefore the compiler must not fuse a product into a sum,
        # unless the kernel asks for it.
        compiled = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        return {
            "bR": self.rows,
            "bC": self.columns,
            "bD": self.depth,
            "PRECISION": self.precision,
            "WIDEN": self.widen,
            **({} if INTERPRETED else compiled),
        }


# benchmarks/kernels/tune.py replaces the next four sizes to measure others. docs/log.md, 2026-11-23, lists instructions
# and spilled loads of the kernels for sm_90.
# A tall tile halves the cost of columns: their sums cross lanes once for each tile, those of rows once for each strip.
TALL = TileConfig(rows=256, columns=128, depth=64, warps=8, stages=3)
# Masks need the registers of half a tile. So does the gradient of a sigmoid: with a tall tile, its kernel spilled 1,100
# loads.
SQUARE = TileConfig(rows=128, columns=128, depth=64, warps=8, stages=3)
# sm_80 to sm_89 and sm_120: matrix units read registers, and shared memory may be as small as 99 KiB.
SMALL = TileConfig(rows=128, columns=64, depth=32, warps=8, stages=3)
# float32 needs twice the bytes.
FLOAT32 = TileConfig(rows=128, columns=64, depth=32, warps=8, stages=2)
INTERPRETER = TileConfig(rows=32, columns=32, depth=32, warps=4, stages=1, widen=True)


def tile_config_for(dtype: torch.dtype, device: torch.device, *, masked: bool) -> TileConfig:
    """Returns the tile size for vectors of `dtype`.

    `masked` says whether a kernel needs registers for more than the scores of a tile, for instance for a mask of
    positives. On devices with large tiles, the tile of such a kernel is smaller.
    """
    if INTERPRETED:
        return INTERPRETER
    if dtype == torch.float32:
        return FLOAT32
    # sm_90 and sm_100 have 227 KiB of shared memory, and matrix units that read it.
    if torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return SMALL
    return SQUARE if masked else TALL


def panels(length: int, tile: TileConfig, columns: int) -> list[Range]:
    """Cuts `length` rows into panels, whose statistics are stored tile by tile and then merged.

    A tile of rows stores its own part of every statistic, with one number for each of the `columns` columns. The
    number of rows of a panel is limited so that the parts of one statistic take at most `PART_BYTES` together. A panel
    has at least one tile of rows, and at most `MAX_PANEL_ROWS` rows if a tile is not larger.
    """
    # The statistics are float32, and a panel of `tiles` tiles of rows stores each of them `tiles` times for a column.
    tiles = max(1, PART_BYTES // (4 * max(1, columns)))
    return ranges(length, min(max(tile.rows, MAX_PANEL_ROWS), tiles * tile.rows))


def chunks(length: int, tile: TileConfig, rows: int, itemsize: int) -> list[Range]:
    """Cuts `length` columns into chunks.

    A chunk has `rows` rows, and each of its elements takes `itemsize` bytes. A chunk takes at most `CHUNK_BYTES`, but
    has at least the columns of one tile.
    """
    longest = CHUNK_BYTES // max(1, rows * itemsize)
    # Whole tiles, so that a chunk begins where a tile would begin, and only the last one has a tile that is cut.
    return ranges(length, max(tile.columns, longest - longest % tile.columns))


def ranges(length: int, longest: int) -> list[Range]:
    """Returns ranges that cover `length`, each of length `longest`. The last one may be shorter."""
    return [(begin, min(begin + longest, length)) for begin in range(0, length, longest)]


def strips(rows: int, columns: int, tile: TileConfig) -> tuple[int, int]:
    """Returns (number of strips, columns of a strip) for a matrix of `rows` by `columns`.

    A strip is the range of columns that one program of a kernel processes, tile by tile. It is at least four tiles
    wide, if there are enough columns.
    """
    row_tiles = ceil_div(max(1, rows), tile.rows)
    column_tiles = ceil_div(max(1, columns), tile.columns)
    # As many strips as are needed for `PROGRAMS` programs, but none so short that its tiles are few.
    wanted = max(1, ceil_div(PROGRAMS, row_tiles))
    tiles = min(column_tiles, max(4, ceil_div(column_tiles, wanted)))
    return ceil_div(column_tiles, tiles), tiles * tile.columns
