from pathlib import Path

import pytest
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store

from emocap_pretrain.errors import ConfigError, LostContact, Superseded
from emocap_pretrain.record import CUT, RunRecord
from emocap_pretrain.starts import Failure, Start


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def test_a_new_run_has_no_progress_and_no_failures(store: Store) -> None:
    record = RunRecord(store, 8)
    assert (record.done(), record.progress(), list(record.failures())) == (False, 0, [])


def test_progress_is_the_newest_step_with_a_manifest(store: Store) -> None:
    for name in ("step-00000040/manifest.json", "step-00000080/manifest.json", "step-00000120/00001-a/model"):
        store.put(f"checkpoints/{name}", b"{}")
    assert RunRecord(store, 200).progress() == 80


def test_failures_of_a_start_are_told_once_and_those_before_never(store: Store) -> None:
    Start.begin(store, {}).fail(Failure(0, "a", 1, "ValueError", "old"))
    record = RunRecord(store, 8)
    assert record.failures() == []
    Start.begin(store, {}).fail(Failure(1, "b", 7, "ValueError", "new\nsecond line"))
    (cause,) = record.failures()
    assert (cause.rank, cause.host, cause.step, cause.message) == (1, "b", 7, "new")
    assert record.failures() == []


@pytest.mark.parametrize(
    ("kind", "final", "passing"),
    [("ValueError", False, False), ("ConfigError", True, False), ("StoreError", False, True)],
)
def test_wrong_settings_are_final_and_outages_pass(store: Store, kind: str, final: bool, passing: bool) -> None:
    record = RunRecord(store, 8)
    Start.begin(store, {}).fail(Failure(0, "a", 1, kind, "why"))
    (cause,) = record.failures()
    assert (cause.final, cause.passing) == (final, passing)


def test_an_error_is_judged_by_its_class(store: Store) -> None:
    record = RunRecord(store, 8)
    assert record.judge(0, ConfigError("bad")).final
    assert record.judge(0, Superseded("start 3 took over")).final
    assert record.judge(0, LostContact("rank 1 is gone")).lost
    assert record.judge(0, RuntimeError("[/w/gloo/transport/tcp/pair.cc:1] closed")).lost
    assert record.judge(0, StoreError("away")).passing
    assert len(record.judge(0, ValueError("x" * 9999)).message) == CUT
