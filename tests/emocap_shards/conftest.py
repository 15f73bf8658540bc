from collections.abc import Iterator

import pytest
from emocap_shards.store.budget import budget_of
from fault_proxy import FaultProxy
from hypothesis import settings

from launch.local_s3 import LocalS3

# A slow machine must not fail a test; pytest-timeout ends tests that hang.
settings.register_profile("shards", deadline=None)
settings.load_profile("shards")


@pytest.fixture(autouse=True)
def fresh_budgets() -> None:
    """Gives each test its own budget of retries."""
    budget_of.cache_clear()


@pytest.fixture
def faulty_s3(s3: str, s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Runs a proxy in front of the server of `s3`, and sets it as the endpoint. Its `inject` makes requests fail."""
    with FaultProxy(s3_server.ports["s3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
