"""Captions generated faces at an endpoint, as `python -m benchmarks.captioning.client`, which the suite starts."""

import argparse
import asyncio
import io
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from emocap_shards.writing.row import SourceRow
from PIL import Image

from emocap_pretrain.captioning.chat import EndpointAddress, open_endpoint
from emocap_pretrain.captioning.endpoint import EndpointCaptioner
from emocap_pretrain.captioning.journal import open_journal
from emocap_pretrain.captioning.prompt import read_prompt
from emocap_pretrain.captioning.run import CaptioningReport, CaptioningRun, CaptioningSettings


@dataclass(frozen=True, slots=True)
class ClientReading:
    """Holds what one run of the client has measured.

    Attributes:
        faces: Faces with a caption.
        seconds: Wall-clock seconds of the run, without the start of Python.
        seconds_after_first: The same without the first request, which is sent alone.
        cpu_seconds: Processor time of the client in these seconds.
        repeated: Requests of an earlier run that were sent again, because their answer had not been stored.
    """

    faces: int
    seconds: float
    seconds_after_first: float
    cpu_seconds: float
    repeated: int


def rows(count: int, pixels: int) -> Iterator[SourceRow]:
    """Yields rows with the same JPEG of smooth noise and different keys."""
    noise = np.random.default_rng(0).integers(0, 255, (pixels // 8, pixels // 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    image = out.getvalue()
    for number in range(count):
        yield SourceRow(f"face {number}", f"face-{number:07d}", image, b'{"labels": {}}', "jpg")


async def _caption(options: argparse.Namespace) -> ClientReading:
    journal = open_journal(options.out / "answers.journal")
    first: list[float] = []

    def show(_: CaptioningReport) -> None:
        if not first:
            first.append(time.perf_counter())

    settings = CaptioningSettings(prompt="faces", concurrency=options.concurrency)
    try:
        async with open_endpoint(EndpointAddress(url=options.url), concurrency=options.concurrency) as endpoint:
            captioner = EndpointCaptioner(endpoint, "measured", read_prompt(), stream=not options.whole)
            run = CaptioningRun(captioner, journal, settings, show)
            begun, used = time.perf_counter(), _cpu_s()
            report = await run.caption(rows(options.faces, options.pixels))
            ended = time.perf_counter()
            after_first = ended - (first[0] if first else begun)
            return ClientReading(report.captioned, ended - begun, after_first, _cpu_s() - used, report.repeated)
    finally:
        journal.close()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(words: Sequence[str]) -> None:
    """Captions faces, and prints a `ClientReading` as JSON."""
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("url")
    add("out", type=Path)
    add("--faces", type=int, required=True)
    add("--concurrency", type=int, required=True)
    add("--pixels", type=int, default=224)
    add("--whole", action="store_true")
    reading = asyncio.run(_caption(parser.parse_args(words)))
    sys.stdout.write(json.dumps(asdict(reading)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
