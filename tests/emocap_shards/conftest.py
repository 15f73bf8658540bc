import os
import uuid
from collections.abc import Iterator

import pytest
from emocap_shards.store.budget import budget_of
from fault_proxy import FaultProxy
from hypothesis import settings

from launch.local_s3 import BUCKET, LocalS3

# A busy machine is slow, which is no failure; pytest-timeout ends what hangs.
settings.register_profile("shards", deadline=None)
settings.load_profile("shards")


@pytest.fixture(autouse=True)
def fresh_budgets() -> None:
    """What one test has spent is missing to no other."""
    budget_of.cache_clear()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """One real S3 server (SeaweedFS) for the session, or for each process of pytest-xdist."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh URL on the real server, with the environment that reaches it."""
    _enter(monkeypatch, s3_server.environment())
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def faulty_s3(s3: str, s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy that the environment of `s3` now leads through; `inject` breaks requests."""
    with FaultProxy(s3_server.ports["s3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def _enter(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """Sets the variables, and nothing of the person's own AWS set-up remains."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "60")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
