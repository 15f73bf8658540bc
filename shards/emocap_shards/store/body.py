"""Bodies of answers, of which no more is kept than was asked for: a broken server may send without end."""

import re
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime

from emocap_shards.store.failure import ShortAnswer

ERROR_BYTES = 64 << 10  # of the body of an error: what it says is in its beginning
_STEP_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (?:(?P<start>\d{1,19})-\d{1,19}|\*)/(?P<total>\d{1,19}|\*)$")

Read = Callable[[int], Awaitable[bytes]]
"""Gives at most so many of the next bytes, and none at the end."""


async def at_most(read: Read, limit_bytes: int) -> bytes:
    """The body, or its beginning where it is longer."""
    chunks: list[bytes] = []
    left = limit_bytes
    while left and (chunk := await read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def cut(read: Read, start: int, end: int) -> tuple[bytes, int | None]:
    """Bytes [start, end) of the body, and its size if it ended before; what follows is not waited for."""
    kept, seen = bytearray(), 0
    while seen < end:
        chunk = await read(_STEP_BYTES)
        if not chunk:
            return bytes(kept), seen
        kept += chunk[max(0, start - seen) : max(0, end - seen)]
        seen += len(chunk)
    return bytes(kept), None


def total_of(content_range: str, start: int) -> int | None:
    """The object's size, or None where the header does not say.

    Raises:
        ShortAnswer: If the range begins elsewhere than at `start`.
    """
    found = _RANGE.match(content_range)
    if not found:
        return None
    if found["start"] is not None and int(found["start"]) != start:
        raise ShortAnswer(f"asked for bytes from {start}, got them from {found['start']}")
    return int(found["total"]) if found["total"] != "*" else None


def age_of(headers: Mapping[str, str]) -> float | None:
    """Seconds since an object was written, from two times of one server's clock; None where one of them is missing."""
    try:
        now, written = (parsedate_to_datetime(headers[name]) for name in ("date", "last-modified"))
        return max(0.0, (now - written).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None
