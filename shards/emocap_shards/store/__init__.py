"""Opens and uses stores: a folder, S3, or any file system that fsspec knows.

`open_store` (in `opening`) returns a `Store` (in `protocol`), the interface that all other code uses. `folder`
implements it for a file system. `objects` implements it for everything else: `transfer` cuts large objects into parts
and limits the requests in flight, `retry` repeats them within a `budget`, and a `backend` (`s3`, `web`, `driver` or
`memory`) makes a single attempt. `failure` interprets the errors of all of them.
"""

from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.opening import open_store
from emocap_shards.store.protocol import Entry, Store

__all__ = ["Entry", "RetryConfig", "Store", "TransferConfig", "open_store"]
