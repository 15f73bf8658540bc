"""Sizes of tiles, panels and chunks: a function of dtype, device and batch, never of what is in the tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from emocap_kernels.blocks import ceil_div

# A chunk of the gradient of the scores, or of marks.
CHUNK_BYTES = 128 * 2**20
# One line of the parts that tiles of a panel leave for each column.
PART_BYTES = 128 * 2**20
# Rows of a panel, when the bytes allow; a chunk of 128 MiB then has as many columns, in half precision.
LONGEST = 8192
# Programs of a launch: several waves on all processors, or the last wave leaves most of them idle.
PROGRAMS = 2048

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, slots=True)
class Shape:
    """One tile, and how it is compiled.

    Attributes:
        rows: `bR`.
        columns: `bC`.
        depth: `bD`.
        warps: Of a program.
        stages: Strips of the embeddings that are under way at once.
        precision: Of float32 products: three products of tf32 parts, which is float32 but for its last bits.
        widen: Only for the interpreter, whose dot of bfloat16 is wrong.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    precision: str = "tf32x3"
    widen: bool = False

    def options(self) -> dict[str, int | str | bool]:
        """The arguments that all kernels share."""
        # A score must be the same number in every kernel, so no product is fused into a sum unless it says so.
        compiled = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        return {
            "bR": self.rows,
            "bC": self.columns,
            "bD": self.depth,
            "PRECISION": self.precision,
            "WIDEN": self.widen,
            **({} if INTERPRETED else compiled),
        }


# A tall tile halves what columns cost: their sums cross lanes once for each tile, those of rows once for each strip.
TALL = Shape(rows=256, columns=128, depth=64, warps=8, stages=3)
# Masks take the registers of half a tile.
SQUARE = Shape(rows=128, columns=128, depth=64, warps=8, stages=3)
# Where matrix units read registers, and 99 KiB of shared memory are all there may be: sm_80 to sm_89, sm_120.
SMALL = Shape(rows=128, columns=64, depth=32, warps=8, stages=3)
# float32 takes twice the bytes.
WIDE = Shape(rows=128, columns=64, depth=32, warps=8, stages=2)
INTERPRETER = Shape(rows=32, columns=32, depth=32, warps=4, stages=1, widen=True)


def shape_for(dtype: torch.dtype, device: torch.device, *, masked: bool) -> Shape:
    """The tile of a problem; `masked` if its pairs are not own pairs alone."""
    if INTERPRETED:
        return INTERPRETER
    if dtype == torch.float32:
        return WIDE
    # sm_90 and sm_100 have 227 KiB and matrix units that read it.
    if torch.cuda.get_device_capability(device)[0] not in (9, 10):
        return SMALL
    return SQUARE if masked else TALL


def panels(length: int, shape: Shape, width: int) -> list[tuple[int, int]]:
    """Ranges of rows that are folded together, so that their parts of `width` columns keep to `PART_BYTES`."""
    tiles = max(1, PART_BYTES // (4 * max(1, width)))
    return ranges(length, min(max(shape.rows, LONGEST), tiles * shape.rows))


def chunks(length: int, shape: Shape, rows: int, itemsize: int) -> list[tuple[int, int]]:
    """Ranges of columns of which `rows` rows of `itemsize` bytes keep to `CHUNK_BYTES`."""
    longest = CHUNK_BYTES // max(1, rows * itemsize)
    return ranges(length, max(shape.columns, longest - longest % shape.columns))


def ranges(length: int, longest: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + longest, length)) for begin in range(0, length, longest)]


def strips(rows: int, columns: int, shape: Shape) -> tuple[int, int]:
    """(how many, columns of one): programs that share a row of tiles, at least four tiles each if there are many."""
    row_tiles = ceil_div(max(1, rows), shape.rows)
    column_tiles = ceil_div(max(1, columns), shape.columns)
    wanted = max(1, ceil_div(PROGRAMS, row_tiles))
    tiles = min(column_tiles, max(4, ceil_div(column_tiles, wanted)))
    return ceil_div(column_tiles, tiles), tiles * shape.columns
