import os
import uuid
from collections.abc import Iterator

import pytest

from emocap_pretrain.checkpoint import manifest
from launch.local_s3 import BUCKET, LocalS3


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed loses no page of the kernel's, and a store that is whole needs no second reading."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(manifest, "PAUSE_S", 0.0)


@pytest.fixture(scope="session")
def sweep_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(sweep_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh URL on a real S3 server, with the environment that reaches it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in sweep_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "60")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
