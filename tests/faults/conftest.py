import os

import pytest

from emocap_pretrain.run_folder import storage


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed loses no page of the kernel's, and a store that is whole needs no second reading."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(storage, "PAUSE_S", 0.0)
