import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.local_s3 import BUCKET, LocalS3

ROOT = Path(__file__).parents[1]
COSTLY = {line for line in (ROOT / "tests/costly.txt").read_text().splitlines() if not line.startswith("#")}
# The files that take longest, in the order of their time. They begin first: otherwise one of them would begin last, and
# the other processes of pytest-xdist would wait for it.
LONGEST = (
    "tests/emocap_cluster/test_supervise.py",
    "tests/launch/test_forms.py",
    "tests/launch/test_canaries.py",
    "tests/emocap_kernels/test_kernel_engines.py",
    "tests/emocap_pretrain/test_signals.py",
    "tests/emocap_pretrain/health/liveness/test_watched_ranks.py",
    "tests/emocap_pretrain/tracking/test_mlflow_server.py",
    "tests/emocap_pretrain/dry_run/test_memory.py",
    "tests/benchmarks/test_kernels_suite.py",
    "tests/benchmarks/test_shards_suite.py",
    "tests/emocap_pretrain/test_cli.py",
    "tests/emocap_pretrain/dry_run/test_preflight.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the files in tests/costly.txt as `costly`, and puts the files of `LONGEST` first."""
    ranks = {file: rank for rank, file in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(_file(item), len(LONGEST)))
    for item in items:
        if _file(item) in COSTLY:
            item.add_marker("costly")


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """One real S3 server (SeaweedFS) for the session, or for each process of pytest-xdist."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh URL on the real server; the environment reaches it and has nothing of the person's own AWS set-up."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "60")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
