"""Reads ranges over plain HTTP, and implements the read-only backend for web servers.

The S3 backend also uses `open_session` and `ranged`, because it reads ranges by signed URLs. What a server sends is not
trusted: bodies are read within limits, and compressed bodies and redirects to another host are refused
(docs/security.md).
"""

import netrc
import os
import re
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from ssl import SSLContext
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yarl
from fsspec.asyn import get_loop
from fsspec.implementations.http import HTTPFileSystem

from emocap_shards.errors import StoreError
from emocap_shards.mask import masked_url
from emocap_shards.store.backend import Condition, Facts, ObjectBytes, Page
from emocap_shards.store.body import ERROR_BYTES, age_of, at_most, cut, known, total_of
from emocap_shards.store.failure import Refusal
from emocap_shards.store.limits import RetryConfig, TransferConfig

READ_AHEAD_BYTES = 1 << 20  # Per response. With aiohttp's default of 64 KiB the transfer of a part pauses often.
# Asks for an uncompressed body, because a range of a compressed one would be other bytes.
_AS_IT_IS = {"Accept-Encoding": "identity"}
# "aws-chunked" describes how a body was uploaded to S3; some servers keep it as if it were a property of the object.
_PLAIN = {"", "identity", "aws-chunked"}
# Statuses whose Location may be requested instead.
REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5
_XML = {name: re.compile(rf"<{name}>(.*?)</{name}>", re.DOTALL) for name in ("Code", "Message")}


class WebServer:
    """A read-only backend for the files below a URL of HTTP or HTTPS. The URL's user, password and query are sent with
    every request.
    """

    trusted, swaps = False, False

    def __init__(self, url: str, patience: RetryConfig, traffic: TransferConfig) -> None:
        self._parts = urlsplit(url)
        self._shown = masked_url(url)
        self._patience, self._traffic = patience, traffic
        self._opened: aiohttp.ClientSession | None = None

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:  # noqa: ARG002
        return await ranged(self._session(), self._url(path), start, end)

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int) -> ObjectBytes:
        async with _asked(self._session(), "GET", self._url(path), _AS_IT_IS) as response:
            await _need(response, {200})
            total = response.content_length
            # A server without ranges could not send the rest later.
            limit = min(limit_bytes, most_bytes) if response.headers.get("Accept-Ranges") == "bytes" else most_bytes
            if total is not None and total > limit:
                response.close()
                return ObjectBytes(b"", total, _version(response.headers))
            # One byte above the limit shows the caller that the object is too large.
            data = await at_most(response.content.read, most_bytes + 1)
            return ObjectBytes(data, len(data), _version(response.headers))

    async def head(self, path: str) -> Facts:
        async with _asked(self._session(), "HEAD", self._url(path), _AS_IT_IS) as response:
            if response.status not in {405, 501}:
                await _need(response, {200})
                if response.content_length is not None:
                    return Facts(response.content_length, _version(response.headers), age_s=age_of(response.headers))
        part = await self.get(path, 0, 1, attempt=1)  # The server does not support HEAD.
        return Facts(known(part.total), part.version)

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:  # noqa: ARG002
        raise self._read_only(path)

    async def put_file(self, path: str, local_path: str) -> None:  # noqa: ARG002
        raise self._read_only(path)

    async def delete(self, paths: Sequence[str]) -> None:
        raise self._read_only(paths[0])

    async def page(self, prefix: str, token: str) -> Page:  # noqa: ARG002
        cure = "read files by name, or use the server's own storage"
        raise StoreError(f"cannot list {prefix!r} in {self._shown}: web servers have no listing; {cure}.")

    def _read_only(self, path: str) -> StoreError:
        cure = "write to a folder or to S3"
        return StoreError(f"cannot write {path!r} in {self._shown}: a web server is read-only here; {cure}.")

    def _url(self, path: str) -> yarl.URL:
        whole = f"{self._parts.path.rstrip('/')}/{quote(path)}"
        return yarl.URL(urlunsplit(self._parts._replace(path=whole)), encoded=True)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            headers = None if self._parts.username else _netrc(self._parts.hostname or "")
            self._opened = open_session(self, urlunsplit(self._parts), self._patience, self._traffic, headers=headers)
        return self._opened


def open_session(
    owner: object,
    url: str,
    patience: RetryConfig,
    traffic: TransferConfig,
    trust: SSLContext | bool = True,
    headers: dict[str, str] | None = None,
) -> aiohttp.ClientSession:
    """Returns a session for the host of a URL, on the running event loop. The session is closed when `owner` is
    garbage-collected.

    `trust` is an SSL context with the trusted certificates, or True for the default ones. `headers` are sent with every
    request.

    The session obeys HTTPS_PROXY and NO_PROXY, which are read once here. aiohttp's own support for them would open
    ~/.netrc for every request. Host names are resolved in threads for which the interpreter waits when it ends, so a
    resolver that hangs delays the end of the process.
    """
    # An attempt as a whole is limited by `RetryConfig.attempt_s`, because its time depends on the size of the request.
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=patience.connect_timeout_s, sock_read=patience.read_timeout_s
    )
    parts = urlsplit(url)
    host = parts.hostname or ""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=traffic.in_flight, ssl=trust),
        read_bufsize=READ_AHEAD_BYTES,
        timeout=timeout,
        proxy=None if proxy_bypass(host) else getproxies().get(parts.scheme),
        headers=headers,
        auto_decompress=False,  # A few bytes can be inflated to gigabytes.
    )
    weakref.finalize(owner, HTTPFileSystem.close_session, get_loop(), session)
    return session


def _netrc(host: str) -> dict[str, str] | None:
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except FileNotFoundError:
        return None
    except netrc.NetrcParseError as error:
        raise StoreError(f"cannot read ~/.netrc: {error.msg}; correct it.") from None
    return {"Authorization": aiohttp.encode_basic_auth(found[0], found[2])} if found else None


async def ranged(session: aiohttp.ClientSession, url: yarl.URL, start: int, end: int) -> ObjectBytes:
    """Returns bytes [start, end) with one GET, also from a server that ignores ranges.

    Raises:
        Refusal: If the answer is an error, or compressed.
        ShortAnswer: If the answer holds another range than the requested one.
    """
    async with _asked(session, "GET", url, {"Range": f"bytes={start}-{end - 1}", **_AS_IT_IS}) as response:
        version, content_range = _version(response.headers), response.headers.get("Content-Range", "")
        if response.status == 416:
            total = total_of(content_range, start)
            return ObjectBytes(b"", total if total is not None else start, version)
        await _need(response, {200, 206})
        if response.status == 206:
            total = total_of(content_range, start)
            return ObjectBytes(await at_most(response.content.read, end - start + 1), total, version)
        data, seen = await cut(response.content.read, start, end)
        return ObjectBytes(data, seen if response.content_length is None else response.content_length, version)


@asynccontextmanager
async def _asked(
    session: aiohttp.ClientSession, method: str, url: yarl.URL, headers: Mapping[str, str]
) -> AsyncGenerator[aiohttp.ClientResponse]:
    """Yields the answer to a request; a redirect is followed only on the same host.

    A redirect to another host could lead to a host that only this machine can reach, and would send it the credentials
    for the first host.
    """
    for _ in range(MOST_REDIRECTS + 1):
        async with session.request(method, url, headers=headers, allow_redirects=False) as response:
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None:
                yield response
                return
            url = _redirected(url, location, response.status)
    raise Refusal(310, "TooManyRedirects", f"the server redirects more than {MOST_REDIRECTS} times")


def _redirected(url: yarl.URL, location: str, status: int) -> yarl.URL:
    """Returns the URL to which a redirect leads, with the user and password of the old URL.

    The scheme, the host and the port must stay the same, except for a change from http to https on the default ports.

    Raises:
        Refusal: If the redirect leads elsewhere, or to something that is not a URL.
    """
    try:
        target = url.join(yarl.URL(location, encoded=True))
        to, port = target.host, target.port
    except ValueError as error:
        raise Refusal(status, "Redirect", "the server redirects to something that is not a URL") from error
    is_secured = (url.scheme, target.scheme) == ("http", "https") and (url.port, port) == (80, 443)
    if to != url.host or ((url.scheme, url.port) != (target.scheme, port) and not is_secured):
        place = f"{target.scheme}://{to}:{port}"
        raise Refusal(status, "Redirect", f"the server redirects to {place}; if you trust it, name it in the URL")
    authority = url.raw_authority if not is_secured else url.raw_authority.removesuffix(":80")
    return yarl.URL.build(
        scheme=target.scheme,
        authority=authority,
        path=target.raw_path,
        query_string=target.raw_query_string,
        encoded=True,
    )


async def _need(response: aiohttp.ClientResponse, statuses: set[int]) -> None:
    """Raises `Refusal` unless the status is one of `statuses` and the body is not compressed."""
    if response.status in statuses:
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _PLAIN:
            message = f"the server compresses it ({encoding[:20]}); configure it to send these files unchanged"
            raise Refusal(response.status, "ContentEncoding", message)
        return
    text = (await at_most(response.content.read, ERROR_BYTES)).decode(errors="replace")
    found = {name: pattern.search(text) for name, pattern in _XML.items()}
    code, message = (match[1].strip() if match else "" for match in found.values())
    asked = response.headers.get("Retry-After", "")
    raise Refusal(response.status, code, message or str(response.reason), asked)


def _version(headers: Mapping[str, str]) -> str:
    return headers.get("ETag", "") or headers.get("Last-Modified", "")
