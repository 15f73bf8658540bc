"""Opens stores with a short deadline, for commands whose user waits for the result.

If a store does not answer, such a command gives up after a minute, while training waits 15 minutes.
"""

import os
from dataclasses import replace

from emocap_shards.store import RetryConfig, Store, open_store
from emocap_shards.store.limits import DEADLINE

SOON_S = 60.0


def open_soon(url: str) -> Store:
    """Opens the store at a URL with a deadline of a minute, or of EMOCAP_STORE_DEADLINE_S if that variable is set.

    If an operation of the store fails, it is retried until the deadline. The time begins with the first attempt of the
    operation (decision 22).
    """
    patience = RetryConfig.of_environment()
    return open_store(url, patience=patience if DEADLINE in os.environ else replace(patience, deadline_s=SOON_S))


def need_answer(url: str, path: str) -> None:
    """Checks that the store answers before the deadline of `open_soon`.

    Some commands use the long deadline of training for their work, so that they survive an outage of the store. They
    call this function first, so that a wrong address is reported soon.

    Args:
        url: The URL of the store.
        path: A path in the store that is looked up.

    Raises:
        StoreError: If the store does not answer before the deadline.
    """
    open_soon(url).exists(path)
