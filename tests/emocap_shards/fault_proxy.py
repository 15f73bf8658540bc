"""An HTTP/1.1 proxy that injects the faults of its rules and counts them. It runs in a thread of the test."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self, TypeVar

FAULTS = ("delay", "stall", "reset", "lost_answer", "truncate", "flip", "500", "503", "429")
LONG_S = 3600.0
T = TypeVar("T")
_ANSWERS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
    "429": ("429 Too Many Requests", "TooManyRequests"),
}


@dataclass
class Rule:
    """Injects a fault into a share of the matching requests, or into all of them until `left` requests have failed.

    `stall` sends half of the body and then nothing. `reset` cuts the connection before the request reaches the server,
    and `lost_answer` afterwards. `truncate` sends half of the body and cuts the connection. `flip` changes one bit of a
    body.
    """

    fault: str
    methods: frozenset[str]
    containing: str
    probability: float
    left: int | None

    def hits(self, request: "Request", dice: random.Random) -> bool:
        if self.left == 0 or request.method not in self.methods or self.containing not in request.target:
            return False
        if dice.random() >= self.probability:
            return False
        if self.left is not None:
            self.left -= 1
        return True


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    head: bytes
    body: bytes


class FaultProxy:
    """A context manager for a proxy for `upstream`, a port of 127.0.0.1, that listens on `port`.

    `counts` says how many requests passed ("none") or had each fault. `requests` lists "METHOD target". `most_at_once`
    is the largest number of simultaneous requests.
    """

    def __init__(self, upstream: int, *, seed: int = 0) -> None:
        self.upstream = upstream
        self.port = 0
        self.counts: Counter[str] = Counter()
        self.requests: list[str] = []
        self.most_at_once = 0
        self._now = 0
        self.delay_s = 0.2
        self._rules: list[Rule] = []
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None] | None] = set()  # The loop itself holds weak references.

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def inject(
        self,
        fault: str,
        *,
        probability: float = 1.0,
        count: int | None = None,
        methods: str = "GET",
        containing: str = "",
    ) -> None:
        """Adds a rule for requests with one of the `methods` whose target (path and query) contains `containing`."""
        assert fault in FAULTS, fault
        self._rules.append(Rule(fault, frozenset(methods.split()), containing, probability, count))

    def heal(self) -> None:
        self._rules.clear()

    def forget(self) -> None:
        """Removes all rules and resets the counts."""
        self.heal()
        self.counts.clear()
        self.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return  # The test ended, the client disconnected, or the server is down.
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; returns whether the connection stays open."""
        request = await _request(reader, writer)
        fault = next((rule.fault for rule in self._rules if rule.hits(request, self._dice)), "none")
        self.counts[fault] += 1
        self.requests.append(f"{request.method} {request.target}")
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._answer(request, fault, writer)
        finally:
            self._now -= 1

    async def _answer(self, request: Request, fault: str, writer: asyncio.StreamWriter) -> bool:
        if fault == "reset":
            return False
        if fault in _ANSWERS:
            writer.write(_refusal(*_ANSWERS[fault], head_only=request.method == "HEAD"))
            await writer.drain()
            return True
        if fault == "delay":
            await asyncio.sleep(self.delay_s)
        head, body = await self._ask(request)
        return fault != "lost_answer" and await self._send(writer, fault, head, body)

    async def _ask(self, request: Request) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b" ", 2)[1]
            bodiless = request.method == "HEAD" or status in {b"204", b"304"}
            return head, b"" if bodiless else await _body(reader, _headers(head))
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, fault: str, head: bytes, body: bytes) -> bool:
        if fault == "flip" and body:
            place = self._dice.randrange(len(body))
            body = body[:place] + bytes([body[place] ^ 1 << self._dice.randrange(8)]) + body[place + 1 :]
        cut = fault in {"truncate", "stall"} and len(body) > 1
        writer.write(head + (body[: len(body) // 2] if cut else body))
        await writer.drain()
        if fault == "stall":
            await asyncio.sleep(LONG_S)
        return not cut


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    headers = _headers(head)
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")]
    return Request(method, target, b"\r\n".join(lines), await _body(reader, headers))


def _headers(head: bytes) -> dict[str, str]:
    lines = (line.decode("latin-1").split(":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    return {name.strip().lower(): value.strip() for name, value in lines}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = [await reader.readuntil(b"\r\n")]
    while size := int(parts[-1].split(b";")[0], 16):
        parts += [await reader.readexactly(size + 2), await reader.readuntil(b"\r\n")]
    # What follows the last chunk: trailers, such as a checksum, and an empty line.
    while parts[-1] != b"\r\n" or len(parts) == 1:
        parts.append(await reader.readuntil(b"\r\n"))
    return b"".join(parts)


def _refusal(status: str, code: str, *, head_only: bool) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected by a test</Message></Error>'.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if head_only else head + body
