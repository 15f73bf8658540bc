"""A server that speaks the chat completions of OpenAI, as a real HTTP peer of the captioner.

In a test it runs on the test's own event loop, and a `Reply` for each request says what it does. As a program it runs
in a process of its own, for tests that kill the client: `python tests/caption_server.py LOG` prints its URL, answers
every request after a fixed latency, and appends a line to LOG for each request at its arrival.

A request that the server holds back waits for an event of the test and not for time.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

ANSWER = {
    "problem": "none",
    "global": "The person looks clearly afraid.",
    "regions": [
        {
            "region": "eyebrows",
            "state": "raised and drawn together",
            "action_units": [{"unit": 1, "intensity": "strong"}, {"unit": 4, "intensity": "moderate"}],
            "sentence": "The eyebrows are strongly raised and drawn together (AU1 at strong intensity).",
        },
        {
            "region": "mouth",
            "state": "stretched",
            "action_units": [{"unit": 20, "intensity": "slight"}],
            "sentence": "The mouth is slightly stretched (AU20 at slight intensity).",
        },
    ],
    "summary": "The raised and drawn eyebrows and the stretched mouth show clear fear rather than surprise.",
    "cues": ["raised and drawn eyebrows", "stretched mouth"],
}
USAGE = {"prompt_tokens": 900, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 600}}


@dataclass(frozen=True)
class Asked:
    """One request as the server received it."""

    id: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def image(self) -> bytes:
        """The bytes of the image."""
        url = self.body["messages"][1]["content"][0]["image_url"]["url"]
        return base64.b64decode(url.partition(",")[2])

    @property
    def text(self) -> str:
        """The text beside the image."""
        return self.body["messages"][1]["content"][1]["text"]


@dataclass(frozen=True)
class Reply:
    """Says what the server does with one request.

    Attributes:
        status: Status of the reply.
        text: Text of the answer; None is `ANSWER`.
        error: Message of an error.
        code: Code of an error.
        headers: Further headers.
        finish: Reason of the end.
        refusal: Text of a refusal.
        raw: The whole body, instead of one that the server makes.
        cut: Whether the connection is closed in the middle of the body.
        hang_up: Whether the connection is closed without a reply.
        until: The reply waits for this event.
    """

    status: int = 200
    text: str | None = None
    error: str = ""
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    refusal: str = ""
    raw: bytes | None = None
    cut: bool = False
    hang_up: bool = False
    until: asyncio.Event | None = None


Rule = Callable[[int, Asked], Reply]
"""Says what happens to a request; the number counts all requests from 0."""


class CaptionServer:
    """Answers requests by a rule, and keeps all of them in `asked`."""

    def __init__(self, rule: Rule, *, latency_s: float = 0.0, pieces: int = 5, log: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self.url = ""
        self.at_once = self.most_at_once = 0
        self._rule, self._latency_s, self._pieces = rule, latency_s, pieces
        self._log = log.open("a", buffering=1) if log else None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.headers.get("Idempotency-Key", ""), dict(request.headers), await request.json())
        number = len(self.asked)
        self.asked.append(asked)
        if self._log:
            self._log.write(json.dumps({"id": asked.id, "image": hashlib.sha256(asked.image).hexdigest()}) + "\n")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            reply = self._rule(number, asked)
            if reply.until:
                await reply.until.wait()
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            return await self._sent(request, asked, reply)
        except ConnectionResetError:  # The client was killed.
            return web.Response()
        finally:
            self.at_once -= 1

    async def _sent(self, request: web.Request, asked: Asked, reply: Reply) -> web.StreamResponse:
        if reply.hang_up:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if reply.status != 200:
            body = {"error": {"message": reply.error, "code": reply.code}}
            return web.json_response(body, status=reply.status, headers=reply.headers)
        streams = bool(asked.body.get("stream"))
        body = reply.raw if reply.raw is not None else self._events(reply) if streams else _whole(reply)
        kind = "text/event-stream" if streams else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind, **reply.headers})
        await response.prepare(request)
        if reply.cut:
            await response.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        await response.write_eof()
        return response

    def _events(self, reply: Reply) -> bytes:
        """The events of a stream: a comment, the text in pieces, the reason of the end, the usage, and the end."""
        text = json.dumps(ANSWER) if reply.text is None else reply.text
        step = max(1, -(-len(text) // self._pieces))
        deltas: list[dict[str, Any]] = [{"content": text[at : at + step]} for at in range(0, len(text), step)]
        deltas += [{"refusal": reply.refusal}] if reply.refusal else []
        events: list[dict[str, Any]] = [
            {"model": "served", "choices": [{"index": 0, "delta": each}]} for each in deltas
        ]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})
        events.append({"choices": [], "usage": USAGE})
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return f": processing\n\n{lines}data: [DONE]\n\n".encode()


def _whole(reply: Reply) -> bytes:
    text = json.dumps(ANSWER) if reply.text is None else reply.text
    message = {"role": "assistant", "content": text, "refusal": reply.refusal or None}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish}
    return json.dumps({"model": "served", "choices": [choice], "usage": USAGE}).encode()


def in_turn(*replies: Reply) -> Rule:
    """A rule that gives the replies in turn, and the last one to all later requests."""
    return lambda number, _: replies[min(number, len(replies) - 1)]


ANSWERS = in_turn(Reply())


@asynccontextmanager
async def serving(
    rule: Rule = ANSWERS, *, latency_s: float = 0.0, pieces: int = 5, log: Path | None = None
) -> AsyncIterator[CaptionServer]:
    """Serves on a free port of the loopback interface, on the running event loop."""
    server = CaptionServer(rule, latency_s=latency_s, pieces=pieces, log=log)
    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


async def _main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--pieces", type=int, default=5)
    options = parser.parse_args(words)
    async with serving(latency_s=options.latency_s, pieces=options.pieces, log=options.log) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)  # Until the parent closes the pipe or ends.


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
