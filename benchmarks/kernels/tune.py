"""Which tile is fastest on the GPU at hand: every candidate in turn, rounds interleaved, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from emocap_kernels.fused import shapes
from emocap_kernels.fused.shapes import Shape

from benchmarks.harness.measurement import Spread, spread

from . import record
from .global_loss import ours
from .machine import Occasion, versions
from .outcome import Skipped
from .pairs import Pairs
from .passes import call_of
from .timing import clock_of, in_rounds
from .variants import PASSES, Pass, Variant

WHAT = "tile of a fused kernel"


@dataclass(frozen=True, slots=True)
class Tried:
    """One tile for one variant and pass, measured, or skipped and why."""

    variant: str
    pass_: Pass
    tile: Shape
    seconds: Spread | None
    skipped: str | None

    def line(self, about: Occasion, batch: Pairs) -> str:
        rows, width = batch.image.shape
        size = {"rows": rows, "width": width, "dtype": str(batch.image.dtype).removeprefix("torch.")}
        return json.dumps({"what": WHAT, **asdict(self), **size, **versions(None), **asdict(about)})

    def progress(self) -> str:
        tile = self.tile
        name = f"{tile.rows}x{tile.columns}x{tile.depth} {tile.warps} warps {tile.stages} stages"
        said = self.skipped if self.seconds is None else f"{1e3 * self.seconds.median:.2f} ms"
        return f"{self.variant:<10}{self.pass_:<17}{name:<32}{said}"[:80]


# Few, because each compiles for seconds: rows, columns, depth, warps, stages.
CANDIDATES = tuple(
    Shape(*numbers)
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


def tune(batch: Pairs, variants: Sequence[Variant], about: Occasion, out: Path, *, repeats: int) -> Iterator[Tried]:
    """Tries every candidate on `batch` for each of `variants`.

    Raises:
        ValueError: Without a CUDA device.
    """
    device = batch.device
    if device.type != "cuda":
        raise ValueError("tune needs a CUDA device; elsewhere Triton's interpreter only checks the kernels.")
    for variant in variants:
        for pass_ in PASSES:
            calls = {tile: _with(tile, batch, variant, pass_) for tile in CANDIDATES}
            for tile, readings in in_rounds(calls, clock_of(device), repeats=repeats).items():
                if isinstance(readings, Skipped):
                    tried = Tried(variant.name, pass_, tile, None, readings.reason)
                else:
                    tried = Tried(variant.name, pass_, tile, spread(readings), None)
                record.append(out, tried.line(about, batch))
                yield tried


def _with(tile: Shape, batch: Pairs, variant: Variant, pass_: Pass) -> Callable[[], object]:
    call = call_of(ours("fused", variant), batch, variant, pass_)

    def timed() -> object:
        shapes.TALL = shapes.SQUARE = shapes.SMALL = tile
        return call()

    return timed
