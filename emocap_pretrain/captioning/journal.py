"""Stores every answer of a captioner in a file that only grows, before anything else uses the answer.

A line is a checksum (CRC-32, eight hexadecimal digits), a blank and a JSON object: `sent` before a request is sent, and
`answer` after its reply has arrived. A request with `sent` and without `answer` was under way when its process died. It
is sent again, and counted.

`append` writes a line at once, so it survives the end of the process, and `stored` waits until the disk has it. One
`fsync` serves all lines that were written before it. After a crash the last line may be incomplete. It is cut off; a
damaged line in the middle is skipped and counted.
"""

import asyncio
import errno
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from emocap_shards.local_files import UnsafePath, locked, open_regular
from emocap_shards.store.failure import local_trouble
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from emocap_pretrain.captioning.protocol import CaptionAnswer
from emocap_pretrain.errors import CaptioningError, ConfigError

_LOCK_WAIT_S = 2.0  # A process that was just killed may need a moment to release the lock.
_LONGEST_LINE = 1 << 20
_READ_BYTES = 1 << 22


@checked(frozen=True, kw_only=True)
class StoredAnswer:
    """Holds an answer with the request to which it belongs.

    Attributes:
        id: Digest of the request (`protocol.request_digest`).
        key: Key of the sample.
        ask: Number of the request for this face, from 1.
        prompt: Title of the prompt, such as "faces 1".
        answer: The answer.
        at: Time of the answer in ISO 8601, UTC.
    """

    id: str
    key: str
    ask: int
    prompt: str
    answer: CaptionAnswer
    at: str
    kind: Literal["answer"] = "answer"


_ANSWER: TypeAdapter[StoredAnswer] = TypeAdapter(StoredAnswer)


@dataclass(slots=True)
class RequestState:
    """Holds what the journal knows of the requests for one face.

    Attributes:
        asks: Number of stored answers.
        reason: The reason of the last answer; "" with a caption.
        final: Whether no further request is useful.
        sent: Number of the last request that was sent.
        at: Position and length in bytes of the last answer in the file; None without an answer.
    """

    asks: int = 0
    reason: str = ""
    final: bool = False
    sent: int = 0
    at: tuple[int, int] | None = None

    @property
    def is_under_way(self) -> bool:
        return self.sent > self.asks


@dataclass(slots=True)
class AnswerJournal:
    """Reads and appends the answers of one output. `open_journal` opens it; one process at a time has it open."""

    path: Path
    file: int
    states: dict[str, RequestState] = field(default_factory=dict[str, RequestState])
    damaged: int = 0
    spent: float = 0.0
    _size: int = 0
    _stored: int = 0
    _sync: "asyncio.Task[None] | None" = None

    def state(self, request: str) -> RequestState:
        """Returns what is known of a request; an empty state if it is new."""
        return self.states.get(request) or RequestState()

    def sent(self, request: str, ask: int) -> None:
        """Records that a request is about to be sent.

        Raises:
            CaptioningError: If the file cannot be written, for example because the disk is full.
        """
        self._append({"kind": "sent", "id": request, "ask": ask})
        self.states.setdefault(request, RequestState()).sent = ask

    async def store(self, stored: StoredAnswer) -> None:
        """Appends an answer, and waits until the disk has it.

        Raises:
            CaptioningError: If the file cannot be written, for example because the disk is full.
        """
        at = self._append(_ANSWER.dump_python(stored, mode="json"))
        wanted = self._size
        while self._stored < wanted:
            if self._sync is None:
                self._sync = asyncio.create_task(self._synced())
            await asyncio.shield(self._sync)
        self._note(stored, at)

    def read(self, request: str) -> StoredAnswer | None:
        """Returns the last answer to a request; None if there is none, or if it cannot be read any more."""
        at = self.state(request).at
        if at is None:
            return None
        value = _value(os.pread(self.file, at[1], at[0]))
        return None if value is None else _ANSWER.validate_python(value)

    def close(self) -> None:
        os.close(self.file)

    def load(self) -> None:
        """Reads the file, and cuts off an incomplete last line."""
        start = 0
        for piece in _lines(self.file):
            if piece.endswith(b"\n"):
                self._load(piece, start)
                self._size = self._stored = start + len(piece)
            start += len(piece)
        os.ftruncate(self.file, self._size)

    def _load(self, line: bytes, start: int) -> None:
        value = _value(line)
        try:
            if value is not None and value.get("kind") == "sent":
                self.states.setdefault(str(value["id"]), RequestState()).sent = int(value["ask"])
                return
            if value is not None:
                self._note(_ANSWER.validate_python(value), (start, len(line)))
                return
        except (ValidationError, KeyError, ValueError, TypeError):
            pass
        self.damaged += 1

    def _note(self, stored: StoredAnswer, at: tuple[int, int]) -> None:
        answer = stored.answer
        state = self.states.setdefault(stored.id, RequestState())
        state.asks, state.reason, state.final, state.at = stored.ask, answer.reason, answer.final, at
        state.sent = max(state.sent, stored.ask)
        self.spent += answer.usage.cost or 0.0

    def _append(self, value: Mapping[str, Any]) -> tuple[int, int]:
        """Writes a line at the end of the file, and returns its position and length."""
        text = orjson.dumps(value)
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        at = self._size
        try:
            if os.pwrite(self.file, line, at) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):  # What was written of the line is also cut off at the next start.
                os.ftruncate(self.file, at)
            raise self._failed(error) from error
        self._size += len(line)
        return at, len(line)

    async def _synced(self) -> None:
        size = self._size
        try:
            await asyncio.to_thread(os.fsync, self.file)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._sync = None
        self._stored = max(self._stored, size)

    def _failed(self, error: OSError) -> CaptioningError:
        return CaptioningError(
            f"{self.path} cannot be written ({local_trouble(error)}). The answers so far are kept, and the same "
            "command resumes."
        )


def open_journal(path: Path) -> AnswerJournal:
    """Opens or makes the journal at a path, for this process alone, and reads it.

    Raises:
        ConfigError: If another process has it open, or if it cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_regular(path, os.O_RDWR | os.O_CREAT, 0o600, follow=False)
    except OSError as error:
        why = error.strerror if isinstance(error, UnsafePath) else local_trouble(error)
        raise ConfigError(f"{path} cannot be opened: {why}.") from error
    if not locked(file, wait_s=_LOCK_WAIT_S):
        os.close(file)
        raise ConfigError(f"another process is writing {path}: wait for its end, or choose another folder.")
    journal = AnswerJournal(path, file)
    journal.load()
    return journal


def _lines(file: int) -> Iterator[bytes]:
    """Yields the lines of a file with their line feeds. The last one may lack it, and so do pieces of a line that is
    longer than any of this module.
    """
    rest, position = b"", 0
    while chunk := os.pread(file, _READ_BYTES, position):
        position += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
        if len(rest) > _LONGEST_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


def _value(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line; None if the checksum or the form is wrong."""
    text = line[9:].rstrip(b"\n")
    if line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(text):
        return None
    value = orjson.loads(text)
    return value if isinstance(value, dict) else None
