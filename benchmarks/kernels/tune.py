"""Times every candidate tile on the current GPU, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from emocap_kernels.fused import tiling
from emocap_kernels.fused.tiling import TileConfig

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured

from .device import PACKAGES, clock_of, in_rounds
from .global_loss import ours
from .pairs import PairBatch
from .passes import call_of
from .variants import PASSES, Pass, Variant

WHAT = "tile of a fused kernel"


# (rows, columns, depth, warps, stages). There are few, because each takes seconds to compile.
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
    """Yields the time of every candidate on `batch` for each of `variants`.

    Raises:
        ValueError: If there is no CUDA device.
    """
    device = batch.device
    if device.type != "cuda":
        raise ValueError("tune needs a CUDA device; elsewhere Triton's interpreter only checks the kernels.")
    rows, width = batch.image.shape
    dtype = str(batch.image.dtype).removeprefix("torch.")
    for variant in variants:
        for pass_ in PASSES:
            calls = {tile: _with(tile, batch, variant, pass_) for tile in CANDIDATES}
            for tile, readings in in_rounds(calls, clock_of(device), repeats=repeats).items():
                at = {"variant": variant.name, "pass": pass_, "tile": numbers_of(tile), "rows": rows}
                yield measured(
                    about,
                    readings,
                    what=WHAT,
                    contender="fused",
                    setting={**at, "width": width, "dtype": dtype},
                    unit="s",
                    versions=versions(PACKAGES),
                )


def numbers_of(tile: TileConfig) -> str:
    """Returns the sizes of a tile in words."""
    return f"{tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages"


def _with(tile: TileConfig, batch: PairBatch, variant: Variant, pass_: Pass) -> Callable[[], object]:
    call = call_of(ours("fused", variant), batch, variant, pass_)

    def timed() -> object:
        tiling.TALL = tiling.SQUARE = tiling.SMALL = tile
        return call()

    return timed
