"""Implements the backend for the other file systems of fsspec, such as the stores of Google and Azure."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from emocap_shards.errors import StoreError
from emocap_shards.mask import masked_url
from emocap_shards.store.backend import Condition, Facts, ObjectBytes, Page
from emocap_shards.store.failure import EXPECTED, Refusal, ShortAnswer
from emocap_shards.store.protocol import Entry

_GOOGLE = {"gs", "gcs"}


class Driver:
    """A backend that calls the methods of a file system of fsspec. `put_if_absent` is reliable only for Google's store,
    and `put_if_match` raises an error.
    """

    swaps = False

    def __init__(self, url: str) -> None:
        # A cached listing would not show what other processes have written since.
        fs, root = url_to_fs(url, use_listings_cache=False)
        self._fs: Any = fs if fs.async_impl else AsyncFileSystemWrapper(fs)
        self._root = str(root).rstrip("/")
        self._shown = masked_url(url)
        self.trusted = url.split("://", 1)[0] in _GOOGLE

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:  # noqa: ARG002
        try:
            data = await _call(self._fs._cat_file, self._at(path), start=start, end=end)
        except Refusal as refusal:
            if refusal.status == 416:
                return ObjectBytes(b"", start, "")
            raise
        # The driver does not report the object's size, so a short answer needs a second request.
        return ObjectBytes(data, None if len(data) == end - start else (await self.head(path)).size, "")

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int) -> ObjectBytes:
        facts = await self.head(path)
        if facts.size > min(limit_bytes, most_bytes):
            return ObjectBytes(b"", facts.size, facts.version)
        data = await _call(self._fs._cat_file, self._at(path))
        if len(data) != facts.size:  # The object has changed since.
            raise ShortAnswer(f"got {len(data)} bytes of an object of {facts.size}")
        # The version is requested before the bytes. If the object changes in between, `put_if_match` is refused.
        return ObjectBytes(data, facts.size, facts.version)

    async def head(self, path: str) -> Facts:
        info = await _call(self._fs._info, self._at(path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return Facts(int(info["size"]), str(info.get("etag") or info.get("ETag") or info.get("mtime") or ""))

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        if condition is not None and not condition.absent:
            cure = "use S3 or a folder for such objects"
            raise StoreError(f"{self._shown} cannot write on the condition that an object is unchanged; {cure}.")
        mode = {} if condition is None else {"mode": "create"}
        await _call(self._fs._pipe_file, self._at(path), data, **mode)

    async def put_file(self, path: str, local_path: str) -> None:
        await _call(self._fs._put_file, local_path, self._at(path))

    async def page(self, prefix: str, token: str) -> Page:  # noqa: ARG002
        top = self._at(prefix) if prefix else self._root
        found = await _call(self._fs._find, top, detail=True)
        files = ((name, info) for name, info in found.items() if name != top)
        return Page([Entry(name.removeprefix(self._root).lstrip("/"), int(info["size"])) for name, info in files])

    async def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):  # Deleting an absent object is not an error.
                await _call(self._fs._rm_file, self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


async def _call(method: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    """Calls a driver's method, and turns each error that is not among `EXPECTED` into a `Refusal`.

    This is needed because each driver has its own classes of errors. The `Refusal` has the HTTP status of the error, or
    0 if the error has none.
    """
    try:
        return await method(*arguments, **options)
    except EXPECTED:
        raise
    except Exception as error:
        status = next(
            (value for name in ("status_code", "code", "status") if isinstance(value := getattr(error, name, 0), int)),
            0,
        )
        raise Refusal(status, type(error).__name__, str(error)) from error
