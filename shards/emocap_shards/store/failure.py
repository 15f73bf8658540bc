"""Interprets the errors of a store: whether another attempt may succeed, the reason, and advice for the user.

botocore, aiohttp, fsspec's drivers and the operating system each raise their own exceptions. The other modules of the
store call the functions of this module to find out whether an error is transient, whether it means that an object is
absent or that a condition does not hold, and which message the user gets.
"""

import errno
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import SSLError as BotoSSLError
from botocore.parsers import ResponseParserError

from emocap_shards.local_files import UnsafePath
from emocap_shards.mask import masked

_CUT = (
    BotoConnectionError,
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    ResponseStreamingError,
    TimeoutError,
)
# Codes of temporary errors with a status below 500. Those of digests mean that bytes were damaged on their way.
_PASSING = {
    "BadDigest",
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestTimeout",
    "ServiceRequestError",  # This and the next one are Azure's names for a lost connection.
    "ServiceResponseError",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_CREDENTIALS = "check the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or this machine's role"
_FOREVER = {"501", "505"}
_KEYS = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
_LOCAL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file must not grow so large",
}


class Refusal(Exception):  # noqa: N818 - never leaves the store, which raises `StoreError` instead
    """The HTTP status is not the expected one, or the response cannot be used."""

    def __init__(self, status: int, code: str = "", message: str = "", retry_after: str = "") -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class ShortAnswer(ConnectionError):  # noqa: N818
    """An answer does not hold exactly the requested bytes. The received bytes are never used, and the request is
    retried.
    """


EXPECTED = (OSError, BotoCoreError, ClientError, aiohttp.ClientError, ResponseParserError, Refusal)
"""The errors that a request may raise; any other error is a bug."""


def is_transient(error: BaseException) -> bool:
    """Returns whether the same request may succeed later.

    If the server has sent a status or an error code, only these decide. The error is then transient if the code is in
    `_PASSING`, or if the status is 408, 429, or at least 500 but neither 501 nor 505. Without a status and a code, the
    class of the error decides. Lost connections, timeouts and damaged bytes are transient, for example, but a wrong
    certificate is not.
    """
    status, code = answer(error)
    if status or code:
        # The server has answered, so its answer decides. Otherwise the class of the error does.
        return code in _PASSING or status in {408, 429} or (status >= 500 and str(status) not in _FOREVER)
    if isinstance(error, BotoSSLError | aiohttp.ClientSSLError | ssl.SSLError):
        # A wrong certificate stays wrong; other errors of TLS are those of a connection.
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, _CUT)


def retry_after_s(error: BaseException) -> float:
    """Returns how many seconds clients have to wait according to the server's header Retry-After; 0 without this
    header.
    """
    if isinstance(error, Refusal):
        return header_seconds(error.retry_after)
    response: dict[str, Any] = getattr(error, "response", None) or {} if isinstance(error, ClientError) else {}
    return header_seconds(str(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")))


def header_seconds(text: str) -> float:
    """Returns the number of seconds that a header contains, or the seconds until the date that it contains.

    The result is 0 for a date in the past and for any other text.
    """
    if text.strip().isdecimal():
        return float(text[:12])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()) if text else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0


def is_absence(error: BaseException) -> bool:
    """Returns whether the error says that the object does not exist. The result is False if it says that the bucket
    does not exist.
    """
    return isinstance(error, FileNotFoundError) or (answer(error)[0] == 404 and not is_no_bucket(error))


def is_no_bucket(error: BaseException) -> bool:
    return answer(error)[1] == "NoSuchBucket"


def is_lost_condition(error: BaseException) -> bool:
    """Returns whether the error says that the condition of a write does not hold."""
    return isinstance(error, FileExistsError) or answer(error)[0] == 412 or answer(error)[1] == "PreconditionFailed"


def answer(error: BaseException) -> tuple[int, str]:
    """Returns the HTTP status and the error code of the server's answer that caused the error; (0, "") without an
    answer.
    """
    if isinstance(error, Refusal):
        return error.status, error.code
    response: dict[str, Any] = getattr(error, "response", None) or {}
    if isinstance(error, ClientError):
        code = str(response.get("Error", {}).get("Code", ""))
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        return status or (int(code) if code.isdecimal() else 0), code
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status, ""
    return 0, ""


def reason(error: BaseException) -> str:
    """Returns a description of the error in one line, without secrets."""
    status, code = answer(error)
    if status or code:
        text = error.message if isinstance(error, Refusal) else _server_message(error)
        return masked(" ".join(f"{code or 'HTTP'} ({status}) {text}".split()))[:300]
    if isinstance(error, OSError) and error.strerror and not isinstance(error, aiohttp.ClientError):
        return masked(f"{error.strerror}" + (f" ({error.filename})" if error.filename else ""))
    text = " ".join(str(error).split()) or "no more is known"
    return masked(f"{type(error).__name__}: {text}")[:300]


def cure(error: BaseException) -> str:
    """Returns advice for the user about an error."""
    status, code = answer(error)
    # These three classes are those of S3; a refusal of a web server is none of them.
    is_s3 = isinstance(error, ClientError | NoCredentialsError | PartialCredentialsError)
    public = "; for a public bucket set FSSPEC_S3_ANON=true" if is_s3 else ""
    if code in _KEYS or status == 401 or isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{_CREDENTIALS}{public}"
    if status == 403:
        return f"these credentials do not allow that: check them, the bucket's name and its policy{public}"
    if is_no_bucket(error):
        return "make the bucket, or correct its name in the URL"
    return "check endpoint, credentials and bucket"


def local_trouble(error: OSError) -> str:
    """Returns the reason of an error of the local disk, with advice for the user."""
    if error.errno in _LOCAL:
        return f"{_LOCAL[error.errno]} there: free some, or choose another disk"
    if isinstance(error, UnsafePath):
        return str(error.strerror)
    if isinstance(error, PermissionError):
        return "permission denied: check who owns the folder and its rights"
    if error.errno == errno.EROFS:
        return "the file system is read-only: choose another folder"
    return f"{error.strerror or error}; check the disk"


def _server_message(error: BaseException) -> str:
    """Returns the server's own message without the sentence that botocore puts around it."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    found = response.get("Error", {}).get("Message") if response else None
    return str(found or re.sub(r"^An error occurred .*?: ", "", str(error)))
