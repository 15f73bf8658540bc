"""Faces, clocks and captioners for the tests of captioners of endpoints."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from emocap_shards.writing.row import SourceRow
from PIL import Image

from emocap_pretrain.captioning.chat import EndpointAddress, open_endpoint
from emocap_pretrain.captioning.endpoint import EndpointCaptioner
from emocap_pretrain.captioning.journal import open_journal
from emocap_pretrain.captioning.prompt import read_prompt
from emocap_pretrain.captioning.protocol import FaceToCaption
from emocap_pretrain.captioning.run import CaptioningRun, CaptioningSettings


class VirtualClock:
    """A clock in which a sleep takes no real time, and a timeout fires when the test calls `expire`."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []
        self._timeouts: list[asyncio.Timeout] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def timeout(self, seconds: float) -> asyncio.Timeout:  # noqa: ARG002 - the test decides
        self._timeouts.append(asyncio.timeout(None))
        return self._timeouts[-1]

    def expire(self) -> None:
        """Ends the newest timeout that has begun."""
        self._timeouts[-1].reschedule(asyncio.get_running_loop().time())


def image(number: int = 0) -> bytes:
    """A PNG of one colour, another for each number, with a comment in its metadata."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "taken at home")
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256, 90)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def face(number: int = 0) -> FaceToCaption:
    return FaceToCaption(key=f"face-{number}", jpeg=b"\xff\xd8 jpeg", digest=f"{number:064x}")


def rows(count: int) -> Iterator[SourceRow]:
    for number in range(count):
        labels = b'{"labels": {"emotion": "fear", "person": "anna"}}'
        yield SourceRow(f"row {number}", f"face-{number:04d}", image(number), labels, "png")


@asynccontextmanager
async def captioner(url: str, *, key_env: str = "", **options: Any) -> AsyncIterator[EndpointCaptioner]:
    options.setdefault("clock", VirtualClock())
    async with open_endpoint(EndpointAddress(url=url, key_env=key_env), concurrency=32) as endpoint:
        yield EndpointCaptioner(endpoint, "a-model", read_prompt(), **options)


async def captioned(url: str, out: Path, count: int = 20, *, key_env: str = "", **options: Any) -> CaptioningRun:
    """Captions `count` faces with the journal in the folder `out`, and returns the run.

    `options` are those of `CaptioningSettings`, and `clock`.
    """
    clock = options.pop("clock", None) or VirtualClock()
    settings = CaptioningSettings(prompt="faces 1", **{"concurrency": 8, **options})
    journal = open_journal(out / "answers.journal")
    try:
        async with captioner(url, key_env=key_env, clock=clock) as made:
            run = CaptioningRun(made, journal, settings)
            await run.caption(rows(count))
            return run
    finally:
        journal.close()
