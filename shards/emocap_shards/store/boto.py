"""The HTTP session under botocore, which would read an endless answer to its end."""

from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

from emocap_shards.store.body import ERROR_BYTES, at_most

ANSWER_BYTES = 16 << 20  # several times a listing of 1000 keys, the longest that S3 gives
FIRST_ERROR = 300


class BoundedSession(AIOHTTPSession):
    """Of an error, and of an answer that is no object, only the beginning is read.

    A subclass, as s3fs looks at the session's insides.
    """

    async def send(self, request: Any) -> Any:
        is_object, request.stream_output = request.stream_output, True  # else the session reads all of it
        answer: Any = await super().send(request)
        if answer.status_code >= FIRST_ERROR:
            answer.raw = _Beginning(answer.raw, ERROR_BYTES)
        elif not is_object:
            answer.raw = _Beginning(answer.raw, ANSWER_BYTES)
        return answer


class _Beginning:
    """What botocore asks of an answer that it reads whole."""

    def __init__(self, answer: Any, limit_bytes: int) -> None:
        self._answer, self._limit_bytes = answer, limit_bytes

    async def read(self) -> bytes:
        async with self._answer:  # which closes the connection unless the body was read to its end
            return await at_most(self._answer.content.read, self._limit_bytes)
