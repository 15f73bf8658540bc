"""Implements the backend for S3 and compatible servers. s3fs opens the session, and this module makes the requests.

Ranges are read with plain HTTP requests to signed URLs. This takes far less time than requests by botocore, which signs
each request and parses each response. All other requests are made by botocore's client. The client also reads a range
if the server refuses the signed URL, or if the first attempt to read the range has failed.
"""

import ssl
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import yarl
from aiobotocore.httpsession import AIOHTTPSession
from fsspec.core import split_protocol
from s3fs import S3FileSystem

from emocap_shards.store.backend import Condition, Facts, ObjectBytes, Page
from emocap_shards.store.body import ERROR_BYTES, age_of, at_most, cut, known, total_of
from emocap_shards.store.failure import Refusal, answer
from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.protocol import Entry
from emocap_shards.store.web import REDIRECTS, open_session, ranged

WRITER = "emocap-writer"
# One signed URL is used for all ranges of an object, which costs far less than signing and parsing every request.
SIGNED_FOR_S, KEPT_FOR_S, KEPT_URLS = 3600, 300.0, 4096
_UNSIGNED = {400, 401, 403, *REDIRECTS}  # A redirect means another region, which botocore looks up.
ANSWER_BYTES = 16 << 20  # Several times a listing of 1000 keys, the longest answer of S3.
FIRST_ERROR = 300


class S3:
    """A backend for the objects below s3://bucket/prefix. Credentials come from the standard chain: environment,
    profile, role.
    """

    trusted, swaps = True, True

    def __init__(self, url: str, patience: RetryConfig, traffic: TransferConfig) -> None:
        self._bucket, _, self._prefix = (split_protocol(url)[1] or "").partition("/")
        self._patience, self._traffic = patience, traffic
        self._fs = S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=self._config())
        self._session: aiohttp.ClientSession | None = None
        self._signs, self._signed_once = True, False
        self._urls: dict[str, yarl.URL] = {}
        self._urls_of = float("-inf")
        self._bucket_seen = False

    async def get(self, path: str, start: int, end: int, *, attempt: int) -> ObjectBytes:
        # If the signed URL is refused, and at every further attempt, an ordinary request decides.
        signed = self._signs and attempt == 1
        if signed:
            try:
                part = await ranged(await self._web(), await self._signed(path), start, end)
            except Refusal as refusal:
                if refusal.status not in _UNSIGNED:
                    raise
                self._urls.clear()
            else:
                self._signed_once = True
                return part
        part = await self._get(path, start, end)
        # The signed URL was refused and the ordinary request was not. If no signed URL has ever worked, this server
        # does not accept them, and no further one is tried.
        self._signs = self._signs and (self._signed_once or not signed)
        return part

    async def _get(self, path: str, start: int, end: int) -> ObjectBytes:
        client = await self._client()
        try:
            response = await client.get_object(**self._at(path), Range=f"bytes={start}-{end - 1}")
        except client.exceptions.ClientError as error:
            if answer(error)[0] == 416:
                return ObjectBytes(b"", start, "")
            raise
        version, size = response.get("ETag", ""), response.get("ContentLength")
        async with response["Body"] as body:
            if response["ResponseMetadata"]["HTTPStatusCode"] != 206:  # The server ignores ranges and sends all of it.
                data, seen = await cut(body.read, start, end)
                return ObjectBytes(data, seen if size is None else int(size), version)
            total = total_of(response.get("ContentRange", ""), start)
            # One byte more than requested shows an answer that is too long; `Connection.get` refuses it.
            return ObjectBytes(await at_most(body.read, end - start + 1), total, version)

    async def get_whole(self, path: str, *, limit_bytes: int, most_bytes: int) -> ObjectBytes:
        """Returns the object as `Backend.get_whole` does. The server's own checksum is verified if the server sends
        one.
        """
        response = await (await self._client()).get_object(**self._at(path))
        version, size = response.get("ETag", ""), response.get("ContentLength")
        async with response["Body"] as body:
            # Too large to be read in one answer: the caller reads ranges, or refuses the object.
            if size is not None and int(size) > min(limit_bytes, most_bytes):
                return ObjectBytes(b"", int(size), version)
            # An answer without a Content-Length is read past `limit_bytes`, because only its end shows the size.
            # botocore verifies the checksum when it reads the end.
            data = await at_most(body.read, most_bytes + 1)
        return ObjectBytes(data, len(data), version)

    async def head(self, path: str) -> Facts:
        client = await self._client()
        try:
            response = await client.head_object(**self._at(path))
        except client.exceptions.ClientError as error:
            if answer(error)[0] == 404:
                await self._need_bucket()
            raise
        writer, headers = response.get("Metadata", {}).get(WRITER, ""), response["ResponseMetadata"]["HTTPHeaders"]
        return Facts(known(response.get("ContentLength")), response.get("ETag", ""), writer, age_of(headers))

    async def put(self, path: str, data: bytes, condition: Condition | None = None) -> None:
        extra: dict[str, Any] = {}
        if condition is not None:
            extra = {"IfNoneMatch": "*"} if condition.absent else {"IfMatch": condition.version}
            extra["Metadata"] = {WRITER: condition.writer}
        await (await self._client()).put_object(**self._at(path), Body=data, **extra)

    async def put_file(self, path: str, local_path: str) -> None:
        raise NotImplementedError("S3 takes files in parts")

    async def start_upload(self, path: str, writer: str) -> str:
        client = await self._client()
        return (await client.create_multipart_upload(**self._at(path), Metadata={WRITER: writer}))["UploadId"]

    async def put_part(self, path: str, upload: str, number: int, data: bytes) -> str:
        client = await self._client()
        response = await client.upload_part(**self._at(path), UploadId=upload, PartNumber=number, Body=data)
        return response["ETag"]

    async def finish_upload(self, path: str, upload: str, tags: list[str]) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        client = await self._client()
        await client.complete_multipart_upload(**self._at(path), UploadId=upload, MultipartUpload={"Parts": parts})

    async def abort_upload(self, path: str, upload: str) -> None:
        await (await self._client()).abort_multipart_upload(**self._at(path), UploadId=upload)

    async def page(self, prefix: str, token: str) -> Page:
        top = self._key(prefix)
        more = {"ContinuationToken": token} if token else {}
        client = await self._client()
        try:
            response = await client.list_objects_v2(Bucket=self._bucket, Prefix=f"{top}/" if top else "", **more)
        except ValueError as error:  # botocore does not check the numbers and dates of a listing.
            raise Refusal(200, "Listing", f"the server's listing cannot be read ({str(error)[:100]})") from error
        skip = len(self._prefix) + 1 if self._prefix else 0
        found = [(str(item["Key"]), int(item["Size"])) for item in response.get("Contents", [])]
        # Keys that end in "/" are folders that somebody made in a web console.
        entries = [Entry(key[skip:], size) for key, size in found if not key.endswith("/")]
        return Page(entries, response.get("NextContinuationToken", "") if response.get("IsTruncated") else "")

    async def delete(self, paths: Sequence[str]) -> None:
        client = await self._client()
        if len(paths) == 1:
            await client.delete_object(**self._at(paths[0]))
            return
        keys = [{"Key": self._key(path)} for path in paths]
        response = await client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
        # The answer to a deletion of many objects has status 200 also if single ones were refused.
        for failed in response.get("Errors", []):
            code = str(failed.get("Code", ""))
            status = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}.get(code, 400)
            raise Refusal(status, code, f"{failed.get('Key')}: {failed.get('Message', '')}")

    def _config(self) -> dict[str, Any]:
        return {
            "connect_timeout": self._patience.connect_timeout_s,
            "read_timeout": self._patience.read_timeout_s,
            "max_pool_connections": self._traffic.in_flight,
            "signature_version": "s3v4",  # botocore may sign URLs with version 2, which newer buckets refuse.
            "http_session_cls": _BoundedSession,
            "retries": {"total_max_attempts": 1},  # All retries are in retry.py; two layers would multiply them.
        }

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self._prefix, path) if part)

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(path)}

    async def _client(self) -> Any:
        # s3fs keeps the client, and makes a new one only if the old one is closed.
        return await self._fs.set_session()

    async def _need_bucket(self) -> None:
        """Raises `Refusal` if the bucket does not exist. Once the bucket has been found, the server is not asked again.

        This is needed because the answer to a HEAD is 404 both for a missing object and for a missing bucket.
        """
        if self._bucket_seen:
            return
        client = await self._client()
        try:
            await client.head_bucket(Bucket=self._bucket)
        except client.exceptions.ClientError as error:
            if answer(error)[0] == 404:
                raise Refusal(404, "NoSuchBucket", f"there is no bucket {self._bucket!r}") from error
            if answer(error)[0] != 403:  # A client without access to the bucket may still read objects.
                raise
        self._bucket_seen = True

    async def _web(self) -> aiohttp.ClientSession:
        if self._session is None:
            client = await self._client()
            session: Any = self._fs.session
            bundle = session.get_config_variable("ca_bundle")
            trust = ssl.create_default_context(cafile=bundle) if bundle else True
            self._session = open_session(self, client.meta.endpoint_url, self._patience, self._traffic, trust)
        return self._session

    async def _signed(self, path: str) -> yarl.URL:
        now = time.monotonic()
        # All kept URLs are dropped together, long before the oldest of them expires.
        if now - self._urls_of > KEPT_FOR_S or len(self._urls) > KEPT_URLS:
            self._urls, self._urls_of = {}, now
        if path not in self._urls:
            client = await self._client()
            url = await client.generate_presigned_url("get_object", Params=self._at(path), ExpiresIn=SIGNED_FOR_S)
            # With `encoded`, yarl leaves the URL unchanged, and the signature stays valid.
            self._urls[path] = yarl.URL(url, encoded=True)
        return self._urls[path]


class _BoundedSession(AIOHTTPSession):
    """Limits how much botocore reads of an error response, or of a response that does not contain an object.

    Without this limit botocore would read a response of any length into memory. The class is a subclass of the HTTP
    session and not a wrapper, because s3fs accesses private fields of the session.
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
