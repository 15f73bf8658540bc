"""Opens and uses stores: a folder, S3, or any file system that fsspec knows."""

from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.opening import open_store
from emocap_shards.store.protocol import Entry, Store

__all__ = ["Entry", "RetryConfig", "Store", "TransferConfig", "open_store"]
