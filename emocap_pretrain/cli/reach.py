"""Opens stores for commands for which a user waits.

If a store does not answer, these commands give up after a minute, while training waits 15 minutes.
"""

import os
from dataclasses import replace

from emocap_shards.store import RetryConfig, Store, open_store
from emocap_shards.store.limits import DEADLINE

SOON_S = 60.0


def open_soon(url: str) -> Store:
    """Opens the store at a URL with a deadline of a minute, or of EMOCAP_STORE_DEADLINE_S if that variable is set.

    The deadline is that of each operation of the store, counted from its first attempt (decision 22).
    """
    patience = RetryConfig.of_environment()
    return open_store(url, patience=patience if DEADLINE in os.environ else replace(patience, deadline_s=SOON_S))


def need_answer(url: str, path: str) -> None:
    """Checks that the store answers within a minute.

    A command calls this function before work during which it waits for the store as long as training does. So a wrong
    address is reported soon, while the work itself survives an outage of the store.

    Args:
        url: The URL of the store.
        path: A path in the store that is looked up.

    Raises:
        StoreError: If the store does not answer within a minute.
    """
    open_soon(url).exists(path)
