"""URL -> store."""

from pathlib import Path

import fsspec

from emocap_shards.errors import StoreError
from emocap_shards.store.folder import FolderStore
from emocap_shards.store.objects import ObjectStore
from emocap_shards.store.protocol import Store


def open_store(url: str | Path) -> Store:
    """The store rooted at a URL ("s3://bucket/folder", "memory://x") or at a plain path.

    Nothing is contacted yet. Credentials and the endpoint of S3 come from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).

    Raises:
        StoreError: If no file system is known for the URL's protocol.
    """
    text = str(url)
    protocol = text.split("://", 1)[0] if "://" in text else "file"
    if protocol in {"file", "local"}:
        return FolderStore(str(Path(text.removeprefix(f"{protocol}://")).expanduser().absolute()))
    if protocol not in fsspec.available_protocols():
        raise StoreError(f"{text}: unknown protocol {protocol!r}; use a path, s3://bucket/folder or memory://name.")
    return ObjectStore(text.rstrip("/"))
