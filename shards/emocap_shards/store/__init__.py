"""The one door to stores: a folder, S3, or any file system that fsspec knows."""

from emocap_shards.store.limits import Patience, Traffic
from emocap_shards.store.opening import open_store
from emocap_shards.store.protocol import Entry, Store

__all__ = ["Entry", "Patience", "Store", "Traffic", "open_store"]
