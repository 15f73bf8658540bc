"""Stores for commands that a person waits for: given up after a minute, where training waits for 15."""

import os
from dataclasses import replace

from emocap_shards.store import RetryConfig, Store, open_store
from emocap_shards.store.limits import DEADLINE

SOON_S = 60.0


def open_soon(url: str) -> Store:
    """The store at a URL, for a command that is short; EMOCAP_STORE_DEADLINE_S counts where it is set."""
    patience = RetryConfig.of_environment()
    return open_store(url, patience=patience if DEADLINE in os.environ else replace(patience, deadline_s=SOON_S))


def need_answer(url: str, path: str) -> None:
    """Asks for an object before work that takes long, and then waits for a store as training does.

    Raises:
        StoreError: If the store does not answer.
    """
    open_soon(url).exists(path)
