"""Bounds what botocore's HTTP session reads; by itself it reads an endless answer to its end."""

from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

from emocap_shards.store.body import ERROR_BYTES, at_most

ANSWER_BYTES = 16 << 20  # Several times a listing of 1000 keys, the longest answer of S3.
FIRST_ERROR = 300


class BoundedSession(AIOHTTPSession):
    """Limits how much of an HTTP response is read: only the beginning, if it is an error or not an object.

    It is a subclass of the HTTP session and not a wrapper, because s3fs accesses private fields of the session.
    """

    async def send(self, request: Any) -> Any:
        is_object, request.stream_output = request.stream_output, True  # Otherwise the session reads the full body.
        answer: Any = await super().send(request)
        if answer.status_code >= FIRST_ERROR:
            answer.raw = _Beginning(answer.raw, ERROR_BYTES)
        elif not is_object:
            answer.raw = _Beginning(answer.raw, ANSWER_BYTES)
        return answer


class _Beginning:
    """The part of the interface of an answer that botocore uses to read it completely."""

    def __init__(self, answer: Any, limit_bytes: int) -> None:
        self._answer, self._limit_bytes = answer, limit_bytes

    async def read(self) -> bytes:
        async with self._answer:  # Closes the connection unless the body was read to its end.
            return await at_most(self._answer.content.read, self._limit_bytes)
