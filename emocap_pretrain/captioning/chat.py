"""Makes one attempt of a request to an endpoint that speaks the chat completions of OpenAI, and reads its reply.

The endpoint is not trusted: the sizes of its bodies are limited, redirects are not followed, compressed bodies are not
unpacked, and its messages are masked and shortened. The key is sent in one header only. `masked` knows it, so no log,
error or file contains it.
"""

import ipaddress
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from emocap_shards.mask import MASK, masked, remember
from emocap_shards.printable import printable
from emocap_shards.store.body import at_most

from emocap_pretrain.captioning.answers import MOST_LETTERS
from emocap_pretrain.captioning.pacing import asked_wait_s
from emocap_pretrain.captioning.protocol import TokenUsage
from emocap_pretrain.errors import ConfigError, EndpointStopped

MOST_BODY_BYTES = 1 << 23  # A stream repeats about 300 bytes for each token.
_ERROR_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 30.0
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"}
_FLAGGED = ("content_filter", "content_policy", "moderation", "flagged", "safety")
_PASSING = {408, 409, 425}


class TransientFailure(Exception):  # noqa: N818 - it never leaves this package
    """An attempt has failed in a way that may pass. The message is a reason without secrets."""


class RateLimited(TransientFailure):
    """The endpoint asks clients to wait. `wait_s` is 0 if it does not say how long."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class RefusedRequest(Exception):  # noqa: N818 - it never leaves this package
    """The endpoint refuses one request, such as a field that it does not know. `is_flagged` is about the content."""

    def __init__(self, status: int, message: str, *, is_flagged: bool) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.is_flagged = is_flagged


@dataclass(frozen=True, slots=True)
class ChatReply:
    """Holds the complete reply to one request. `finish` is "stop", "length", "content_filter" or another word."""

    text: str
    refusal: str
    finish: str
    usage: TokenUsage
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAddress:
    """Says where an endpoint is, and which environment variable holds its key.

    Attributes:
        url: The URL, such as "https://api.example.org/v1".
        key_env: Name of the environment variable with the key; "" if no key is sent.
        plain_http: Whether http without encryption is allowed to a host other than this one.

    Raises:
        ConfigError: If the URL is none, holds a secret, would send faces without encryption, or the variable is empty.
    """

    url: str
    key_env: str = ""
    plain_http: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"--endpoint {masked(self.url)}: give a URL such as https://api.example.org/v1.")
        if parts.username is not None or parts.query or parts.fragment:
            cure = "give the key by the name of an environment variable, with --key-env"
            raise ConfigError(f"--endpoint: the URL must have no user, password or query; {cure}.")
        if parts.scheme == "http" and not self.plain_http and not _is_loopback(parts.hostname):
            cure = "use https, or allow this with --plain-http in a network that you trust"
            raise ConfigError(f"--endpoint {self.url}: faces and the key would travel without encryption; {cure}.")
        if self.key_env and not os.environ.get(self.key_env, "").strip():
            raise ConfigError(f"--key-env {self.key_env}: this environment variable is empty; set it to the key.")

    @property
    def completions(self) -> str:
        """Returns the URL of the chat completions."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def key(self) -> str:
        """Returns the key, which is masked from now on in all texts of this process."""
        found = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        remember(found)
        return found


class ChatEndpoint:
    """Sends requests to one endpoint. Use `open_endpoint` to make one."""

    def __init__(self, session: aiohttp.ClientSession, address: EndpointAddress) -> None:
        self._session, self._address, self._key = session, address, address.key()

    async def post(self, body: bytes, idempotency_key: str) -> ChatReply:
        """Makes one attempt, and returns the complete reply.

        Args:
            body: The request in JSON.
            idempotency_key: The same for all attempts of one request, so that an endpoint which knows this header
                charges the request once.

        Raises:
            RateLimited: If the endpoint asks clients to wait.
            TransientFailure: If the attempt has failed in a way that may pass.
            RefusedRequest: If the endpoint refuses this request.
            EndpointStopped: If no request can succeed.
        """
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            async with self._session.post(
                self._address.completions, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise await self._failure(response)
                streams = response.content_type == "text/event-stream"
                return await (self._streamed(response) if streams else self._whole(response))
        except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
            raise EndpointStopped(f"{self._shown} cannot be reached: {self._text(str(error))}.") from None
        except (aiohttp.ClientError, ConnectionError, OSError) as error:
            raise TransientFailure(f"{type(error).__name__} {self._text(str(error))}".strip()) from None

    @property
    def _shown(self) -> str:
        return masked(self._address.completions)

    def _text(self, text: str) -> str:
        """Returns a text of the endpoint for a message: in one line, without secrets, shortened."""
        return printable(masked(text.replace(self._key, MASK) if self._key else text))[:300]

    async def _failure(self, response: aiohttp.ClientResponse) -> Exception:
        """Returns the error for a reply with a status other than 200."""
        status, headers = response.status, response.headers
        if 300 <= status < 400:
            place = self._text(headers.get("Location", "another place"))
            cure = "redirects are not followed; if you trust that place, give it as --endpoint"
            return EndpointStopped(f"{self._shown} redirects to {place}: {cure}.")
        code, message = _error_of(await at_most(response.content.read, _ERROR_BYTES))
        said = self._text(message or str(response.reason))
        wait_s = asked_wait_s(headers.get("Retry-After", ""), headers.get("retry-after-ms", ""))
        return self._failure_of(status, code, said, wait_s)

    def _failure_of(self, status: int, code: str, said: str, wait_s: float) -> Exception:
        is_flagged = any(word in f"{code} {said}".lower() for word in _FLAGGED)
        if status == 402 or code in _QUOTA:
            return EndpointStopped(f"{self._shown} has no quota left for this key: {said}.")
        if status == 401 or (status == 403 and not is_flagged):
            name = self._address.key_env
            cure = f"correct the key in {name}" if name else "name the environment variable of the key with --key-env"
            return EndpointStopped(f"{self._shown} does not accept the key (HTTP {status}: {said}): {cure}.")
        if status == 404:
            return EndpointStopped(f"{self._shown}: {said} (HTTP 404): correct --endpoint or --model.")
        if status == 429 or (status == 503 and wait_s):
            return RateLimited(f"HTTP {status}: {said}", wait_s)
        if status >= 500 or status in _PASSING:
            return TransientFailure(f"HTTP {status}: {said}")
        return RefusedRequest(status, said, is_flagged=is_flagged)

    async def _whole(self, response: aiohttp.ClientResponse) -> ChatReply:
        data = await at_most(response.content.read, MOST_BODY_BYTES)
        reply = _Reply()
        self._add(reply, data)
        return reply.done(self._key)

    async def _streamed(self, response: aiohttp.ClientResponse) -> ChatReply:
        reply, received = _Reply(), 0
        try:
            # The stream is read to its end after the last event, because its connection could not be used again.
            async for line in _lines(response.content):
                received += len(line)
                if reply.letters > MOST_LETTERS or received > MOST_BODY_BYTES:
                    response.close()
                    return reply.done(self._key, finish="too_long")
                # Comments keep the connection alive. Other fields of events are not used.
                if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                    self._add(reply, data)
        except (aiohttp.ClientError, ConnectionError):
            if not reply.finish:
                raise
        if not reply.finish:
            raise TransientFailure("the stream was cut before its end")
        return reply.done(self._key)

    def _add(self, reply: "_Reply", data: bytes) -> None:
        try:
            value = orjson.loads(data)
        except ValueError as error:
            raise TransientFailure("the reply is not complete JSON") from error
        if not isinstance(value, dict):
            raise TransientFailure("the reply is JSON of another form")
        event = cast("dict[str, Any]", value)
        if event.get("error"):
            code, message = _error_of(data)
            status = event["error"].get("code") if isinstance(event["error"], dict) else 0
            raise self._failure_of(status if isinstance(status, int) else 500, code, self._text(message), 0.0)
        reply.add(event)


class _Reply:
    """Collects a reply, from one JSON value or from the events of a stream."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self.letters = 0
        self.finish = ""
        self._usage = TokenUsage()
        self._model = ""

    def add(self, event: dict[str, Any]) -> None:
        choices = event.get("choices")
        choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
        message = _mapping(choice.get("message") or choice.get("delta"))
        text, refusal = _content(message.get("content")), _content(message.get("refusal"))
        self._texts.append(text)
        self._refusals.append(refusal)
        self.letters += len(text) + len(refusal)
        if isinstance(finish := choice.get("finish_reason"), str):
            self.finish = finish[:40]
        if isinstance(model := event.get("model"), str):
            self._model = printable(model)[:200]
        if usage := _mapping(event.get("usage")):
            details = _mapping(usage.get("prompt_tokens_details"))
            found = (usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
            prompt, completion, cached = map(_count, found)
            self._usage = TokenUsage(prompt=prompt, completion=completion, cached=cached)

    def done(self, key: str, finish: str = "") -> ChatReply:
        """Returns the reply. A key that the endpoint repeats is removed from its texts."""
        text, refusal, model = (
            each.replace(key, MASK) if key else each
            for each in ("".join(self._texts), "".join(self._refusals), self._model)
        )
        return ChatReply(text, refusal, finish or self.finish, self._usage, model)


@asynccontextmanager
async def open_endpoint(address: EndpointAddress, *, concurrency: int) -> AsyncGenerator[ChatEndpoint]:
    """Yields an endpoint with at most `concurrency` connections, on the running event loop.

    HTTPS_PROXY and NO_PROXY are obeyed, except for this host, so that no face leaves it without encryption. aiohttp's
    own support for them would also send passwords of ~/.netrc.
    """
    parts = urlsplit(address.url)
    is_direct = _is_loopback(parts.hostname or "") or proxy_bypass(parts.hostname or "")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        proxy=None if is_direct else getproxies().get(parts.scheme),
        headers={"Accept-Encoding": "identity", "User-Agent": "emocap_pretrain"},
        auto_decompress=False,
    ) as session:
        yield ChatEndpoint(session, address)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yields the lines of a stream of events. A line of more than `MOST_BODY_BYTES` bytes fails."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_BODY_BYTES:
            raise TransientFailure("an event of the stream is too long")
        for line in lines:
            yield line
    if rest:
        yield rest


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error_of(data: bytes) -> tuple[str, str]:
    """Returns the code and the message in the body of an error; the beginning of the body if it has another form."""
    try:
        body = _mapping(orjson.loads(data))
    except ValueError:
        return "", data[:300].decode(errors="replace")
    error = body.get("error")
    found = _mapping(error) or body
    message = found.get("message") or found.get("detail") or error
    code = found.get("code") or found.get("type") or ""
    return str(code)[:80], str(message)[:1000] if message else data[:300].decode(errors="replace")


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _content(value: object) -> str:
    """Returns the text of a message, which some endpoints send as a list of parts."""
    if isinstance(value, list):
        return "".join(_content(_mapping(part).get("text")) for part in cast("list[object]", value))
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None
