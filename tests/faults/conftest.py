import os

import pytest

from emocap_pretrain.checkpoint import manifest


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed loses no page of the kernel's, and a store that is whole needs no second reading."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(manifest, "PAUSE_S", 0.0)
