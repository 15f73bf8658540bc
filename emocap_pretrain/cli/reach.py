"""Opens stores for commands that a user waits for: they give up after a minute, while training waits for 15."""

import os
from dataclasses import replace

from emocap_shards.store import RetryConfig, Store, open_store
from emocap_shards.store.limits import DEADLINE

SOON_S = 60.0


def open_soon(url: str) -> Store:
    """Opens the store at a URL for a short command, with a short deadline.

    If EMOCAP_STORE_DEADLINE_S is set, its value replaces this deadline.
    """
    patience = RetryConfig.of_environment()
    return open_store(url, patience=patience if DEADLINE in os.environ else replace(patience, deadline_s=SOON_S))


def need_answer(url: str, path: str) -> None:
    """Checks within a minute that the store answers, before long work that waits for it as training does.

    Raises:
        StoreError: If the store does not answer.
    """
    open_soon(url).exists(path)
