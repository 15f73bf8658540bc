"""Uses the memory of this process as a store, for tests and as an example of a backend."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fsspec.core import url_to_fs

from emocap_shards.store.backend import Condition, Facts, ObjectBytes, Page
from emocap_shards.store.failure import Refusal
from emocap_shards.store.protocol import Entry


class Memory:
    """A backend whose requests never wait. On the event loop each request is therefore atomic: no other one can come
    between the check of a condition and the write.
    """

    trusted, swaps = True, True

    def __init__(self, url: str) -> None:
        fs, root = url_to_fs(url)
        self._fs: Any = fs
        self._root = str(root).rstrip("/")

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:  # noqa: ARG002
        facts = await self.head(path)
        return ObjectBytes(bytes(self._fs.cat_file(self._at(path), start, end)), facts.size, facts.version)

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int) -> ObjectBytes:  # noqa: ARG002
        facts = await self.head(path)
        if facts.size > most_bytes:
            return ObjectBytes(b"", facts.size, facts.version)
        return ObjectBytes(bytes(self._fs.cat_file(self._at(path))), facts.size, facts.version)

    async def head(self, path: str) -> Facts:
        info = self._fs.info(self._at(path))
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return Facts(info["size"], str(info["created"]), age_s=(datetime.now(UTC) - info["created"]).total_seconds())

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        if condition is not None and not condition.absent and await self._version(path) != condition.version:
            raise Refusal(412, "PreconditionFailed")
        mode = "create" if condition is not None and condition.absent else "overwrite"
        self._fs.pipe_file(self._at(path), data, mode=mode)

    async def put_file(self, path: str, local_path: str) -> None:
        self._fs.put_file(local_path, self._at(path))

    async def page(self, prefix: str, token: str) -> Page:  # noqa: ARG002
        top = self._at(prefix) if prefix else self._root
        found = self._fs.find(top, detail=True)
        files = ((name, info) for name, info in found.items() if name != top)
        return Page([Entry(name.removeprefix(self._root).lstrip("/"), info["size"]) for name, info in files])

    async def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            if self._fs.isfile(self._at(path)):
                self._fs.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    async def _version(self, path: str) -> str:
        return (await self.head(path)).version if self._fs.isfile(self._at(path)) else ""
