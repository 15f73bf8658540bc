import os

import pytest

from emocap_pretrain.run_folder import storage


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes waits that these tests do not need.

    A kill of a process does not lose what the kernel has buffered, so `fsync` is not needed. The store is consistent,
    so a second reading needs no pause.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(storage, "PAUSE_S", 0.0)
