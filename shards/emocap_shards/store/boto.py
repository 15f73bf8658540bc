"""Limits how much of a response botocore reads. Without a limit its HTTP session would read an endless response."""

from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

from emocap_shards.store.body import ERROR_BYTES, at_most

ANSWER_BYTES = 16 << 20  # Several times a listing of 1000 keys, the longest answer of S3.
FIRST_ERROR = 300


class BoundedSession(AIOHTTPSession):
    """Reads only the beginning of an error response, or of a response that is not an object.

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
    """Provides the beginning of a response's body through the interface that botocore uses to read the body."""

    def __init__(self, answer: Any, limit_bytes: int) -> None:
        self._answer, self._limit_bytes = answer, limit_bytes

    async def read(self) -> bytes:
        async with self._answer:  # Closes the connection unless the body was read to its end.
            return await at_most(self._answer.content.read, self._limit_bytes)
