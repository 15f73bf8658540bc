"""Opens and uses stores: a folder, S3, or any file system that fsspec knows.

`open_store` (in `opening`) returns a `Store` (in `protocol`), the interface that all other code uses. `folder`
implements this interface for a file system, and `objects` implements it for everything else. `objects` uses these
modules: `transfer` cuts large objects into parts and limits the number of simultaneous requests. `retry` sends failed
requests again, and `budget` limits how many retries are sent. A `backend` (`s3`, `web`, `driver` or `memory`) sends
each request once. `failure` interprets the errors of all stores.
"""

from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.opening import open_store
from emocap_shards.store.protocol import Entry, Store

__all__ = ["Entry", "RetryConfig", "Store", "TransferConfig", "open_store"]
