import fcntl
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
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
    "tests/emocap_pretrain/interop/test_export.py",
    "tests/emocap_kernels/test_fused_compiles.py",
    "tests/emocap_pretrain/training/test_interim_evaluation.py",
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
def blank_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an MLflow database without runs, which all processes of pytest-xdist share. Tests write into copies."""
    own = tmp_path_factory.getbasetemp()
    file = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "blank-mlflow.db"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            from mlflow.tracking import MlflowClient

            part = file.with_suffix(".part")
            MlflowClient(f"sqlite:///{part}").search_experiments()
            with closing(sqlite3.connect(part)) as database:
                # Most tables are empty and have one page. Small pages make each copy a quarter as large.
                database.execute("PRAGMA page_size = 1024")
                database.execute("VACUUM")
            part.rename(file)
    return file


@pytest.fixture(scope="session")
def new_mlflow(blank_mlflow: Path) -> Callable[[Path], str]:
    """Returns a function that writes an MLflow database without runs into a file, and returns its tracking URI.

    MLflow itself needs about five seconds of CPU time for a new database, because it repeats its whole history of
    migrations. A copy needs none.
    """

    def make(file: Path) -> str:
        shutil.copyfile(blank_mlflow, file)
        return f"sqlite:///{file}"

    return make


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """Runs one real S3 server (SeaweedFS) for the session; with pytest-xdist, one for each process."""
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns a new URL on the real S3 server. The environment has its credentials, and no AWS settings of the user."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "60")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
