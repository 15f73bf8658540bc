"""Times the fused loss with each tile size of `CANDIDATES` on the current GPU.

A tile is the part of the score matrix that a kernel computes at once. Each round times all candidates one after
another, so that a slow phase of the GPU affects all of them. The tile sizes in `emocap_kernels.fused.tiling` are
replaced before each call. If a candidate is faster than the present tile size, a developer writes it into that module.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

from emocap_kernels.fused import tiling
from emocap_kernels.fused.tiling import TileConfig

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured

from .batches import PairBatch
from .device import PACKAGES, clock_of, dtype_name, in_rounds
from .subject import PASSES, Call, Pass, Variant, call_of
from .subjects import our_global_loss

WHAT = "tile of a fused kernel"

# Each has rows, columns, depth, warps and stages. There are few, because each takes seconds to compile.
CANDIDATES = tuple(
    TileConfig(*numbers)
    for numbers in (
        (256, 128, 64, 8, 3),
        (256, 128, 64, 8, 4),
        (256, 128, 32, 8, 4),
        (128, 256, 64, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 128, 64, 4, 3),
        (128, 128, 128, 8, 2),
        (256, 64, 64, 8, 4),
    )
)


def tune(batch: PairBatch, variants: Sequence[Variant], about: Occasion, *, repeats: int) -> Iterator[Measurement]:
    """Yields the time of the fused loss on `batch`, for each variant, pass and tile size of `CANDIDATES`.

    A pass is the forward pass alone, or forward and backward. `repeats` is the number of readings.

    Raises:
        ValueError: If the batch is not on a CUDA device.
    """
    if batch.device.type != "cuda":
        raise ValueError("tune needs a CUDA device; elsewhere Triton's interpreter only checks the kernels.")
    rows, width = batch.image.shape
    size = {"rows": rows, "width": width, "dtype": dtype_name(batch.image.dtype)}
    for variant in variants:
        for pass_ in PASSES:
            calls = {tile: _with(tile, batch, variant, pass_) for tile in CANDIDATES}
            for tile, readings in in_rounds(calls, clock_of(batch.device), repeats=repeats).items():
                yield measured(
                    about,
                    readings,
                    what=WHAT,
                    contender="fused",
                    setting={"variant": variant.name, "pass": pass_, "tile": numbers_of(tile), **size},
                    unit="s",
                    versions=versions(PACKAGES),
                )


def numbers_of(tile: TileConfig) -> str:
    """Returns a text with the size of a tile (rows x columns x depth), and the warps and stages of its kernels."""
    return f"{tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages"


def _with(tile: TileConfig, batch: PairBatch, variant: Variant, pass_: Pass) -> Call:
    """Returns a function that sets this tile size, and computes the fused loss: forward, or forward and backward."""
    call = call_of(our_global_loss("fused", variant), batch, variant, pass_)

    def timed() -> object:
        with use_tile(tile):
            return call()

    return timed


@contextmanager
def use_tile(tile: TileConfig) -> Generator[None]:
    """Replaces all tiles of the fused kernels in this process within the `with` block."""
    before = tiling.TALL, tiling.SQUARE, tiling.SMALL, tiling.FLOAT32
    tiling.TALL = tiling.SQUARE = tiling.SMALL = tiling.FLOAT32 = tile
    try:
        yield
    finally:
        tiling.TALL, tiling.SQUARE, tiling.SMALL, tiling.FLOAT32 = before
