"""Opens and uses stores: a folder, S3, a web server, or another service for which fsspec has a driver.

`open_store` (in `opening`) returns a `Store` (in `protocol`), the interface that all other code uses. `folder`
implements this interface for a folder on a local or shared disk, and `objects` implements it for all other stores.
`objects` uses these modules: `transfer` cuts large objects into parts and limits the number of simultaneous requests.
`retry` sends failed requests again, and `budget` limits how many retries are sent. A `backend` (`s3`, `web`, `driver`
or `memory`) sends each request once. `failure` interprets the errors of all stores.
"""

from emocap_shards.store.limits import RetryConfig, TransferConfig
from emocap_shards.store.opening import open_store
from emocap_shards.store.protocol import Entry, Store

__all__ = ["Entry", "RetryConfig", "Store", "TransferConfig", "open_store"]
