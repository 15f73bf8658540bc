"""Opens the store at a URL."""

import re
from pathlib import Path

import fsspec

from emocap_shards.errors import StoreError
from emocap_shards.mask import holds_secret, is_ambiguous, masked, masked_url, public_url
from emocap_shards.store.folder import FolderStore
from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.objects import ObjectStore
from emocap_shards.store.protocol import Store

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "adl": "adlfs"}
_S3 = {"s3", "s3a"}
# Some servers, and AWS in earlier years, allow more names than AWS does today. Access points are ARNs.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}$|arn:")
_IN_QUERY = {"http", "https"}


def open_store(url: str | Path, *, patience: RetryConfig | None = None, traffic: TransferConfig | None = None) -> Store:
    """Returns the store rooted at a URL ("s3://bucket/folder", "https://host/folder", "memory://x") or at a plain path.

    No request is sent yet. Credentials come from the standard chain of each service: for S3 the environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL), AWS_PROFILE, or the role of the machine.

    Args:
        url: The root. Stores with http and https are read-only.
        patience: For how long failed requests are retried; by default 15 minutes, or EMOCAP_STORE_DEADLINE_S seconds.
        traffic: Limits on simultaneous requests.

    Raises:
        StoreError: If the URL has an unknown protocol, if the driver for its protocol is not installed, if it names no
            bucket, if it contains credentials (only URLs of http and https may), or if it is not clear which of its
            parts is the host. Also if EMOCAP_STORE_DEADLINE_S is not a number.
    """
    text = str(url)
    protocol = text.split("://", 1)[0] if "://" in text else "file"
    if protocol in {"file", "local"}:
        return FolderStore(str(Path(text.removeprefix(f"{protocol}://")).expanduser().absolute()))
    _need_driver(protocol, text)
    if holds_secret(text) and protocol not in _IN_QUERY:
        cure = "leave them to the environment, a profile or the machine's role"
        raise StoreError(f"{masked_url(text)}: this URL must not contain credentials; {cure}.")
    if is_ambiguous(text):
        cure = "write / ? # [ ] @ and % of a user or password percent-encoded, such as %2F, and also an @ of the path"
        raise StoreError(f"{masked_url(text)}: it is not clear which host that is; {cure}.")
    _need_bucket(protocol, text)
    # The shown URL is compared, pickled and printed. The one with its secrets stays in this process.
    shown = public_url(text).rstrip("/")
    secret = text if shown != text.rstrip("/") else ""
    return ObjectStore(shown, patience or RetryConfig.of_environment(), traffic or TransferConfig(), secret)


def _need_bucket(protocol: str, url: str) -> None:
    if protocol in _S3 and not _BUCKET.match(url.split("://", 1)[1].split("/", 1)[0]):
        name = "a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens"
        raise StoreError(f"{masked_url(url)} names no bucket; write it like s3://bucket/folder: {name}.")


def _need_driver(protocol: str, url: str) -> None:
    if protocol not in fsspec.available_protocols():
        known = "use a path, s3://bucket/folder, https://host/folder or memory://name"
        raise StoreError(f"{masked_url(url)}: unknown protocol {protocol!r}; {known}.")
    if protocol in _S3 | _IN_QUERY | {"memory"}:
        return
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        how = f"pip install {package}" if package else masked(str(error))
        raise StoreError(f"{masked_url(url)}: the driver for {protocol}:// is not installed; {how}.") from error
