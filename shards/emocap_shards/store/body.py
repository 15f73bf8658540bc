"""Reads bodies of HTTP responses within limits, because a broken server may send bytes without end."""

import re
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime

from emocap_shards.store.failure import Refusal, ShortAnswer

ERROR_BYTES = 64 << 10  # Read of the body of an error, whose message is at the beginning.
_STEP_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (?:(?P<start>\d{1,19})-\d{1,19}|\*)/(?P<total>\d{1,19}|\*)$")

Read = Callable[[int], Awaitable[bytes]]
"""Returns at most the given number of further bytes, and none at the end."""


async def at_most(read: Read, limit_bytes: int) -> bytes:
    """Returns the body, or its first `limit_bytes` if it is longer."""
    chunks: list[bytes] = []
    left = limit_bytes
    while left and (chunk := await read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def cut(read: Read, start: int, end: int) -> tuple[bytes, int | None]:
    """Returns (bytes [start, end) of the body, its size). The size is None if the body has at least `end` bytes,
    because the function does not wait for bytes after `end`.
    """
    kept, seen = bytearray(), 0
    while seen < end:
        chunk = await read(_STEP_BYTES)
        if not chunk:
            return bytes(kept), seen
        kept += chunk[max(0, start - seen) : max(0, end - seen)]
        seen += len(chunk)
    return bytes(kept), None


def total_of(content_range: str, start: int) -> int | None:
    """Returns the object's size from a Content-Range header, or None if the header does not contain the size.

    Raises:
        ShortAnswer: If the range does not begin at `start`.
    """
    found = _RANGE.match(content_range)
    if not found:
        return None
    if found["start"] is not None and int(found["start"]) != start:
        raise ShortAnswer(f"asked for bytes from {start}, got them from {found['start']}")
    return int(found["total"]) if found["total"] != "*" else None


def known(size: int | None) -> int:
    """Returns the size of an object.

    Raises:
        Refusal: If the answer does not contain the size. Without it, a reader could take a part for the whole object.
    """
    if size is None:
        raise Refusal(200, "ContentLength", "the server does not tell the size of the object")
    return size


def age_of(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds since an object was written, from the headers Date and Last-Modified of a response.

    Both times come from the server's clock. The result is None if one of the headers is missing or not a date.
    """
    try:
        now, written = (parsedate_to_datetime(headers[name]) for name in ("date", "last-modified"))
        return max(0.0, (now - written).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None
