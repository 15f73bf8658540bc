from pathlib import Path

import pytest
import torch.distributed as dist
from emocap_shards.errors import StoreError
from emocap_shards.store import Store, open_store

from emocap_pretrain.errors import ConfigError, DataError, LostContact, RolledBack, Superseded
from emocap_pretrain.record import MAX_CHARACTERS, ResultRecord, RunRecord
from emocap_pretrain.run_folder.attempts import STOP_REQUESTED, Attempt
from emocap_pretrain.run_folder.documents import Failure, Status


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


def test_failures_of_an_attempt_are_returned_once_and_earlier_ones_never(store: Store) -> None:
    Attempt.begin(store).record_failure(Failure(0, "a", 1, "ValueError", "old"))
    record = RunRecord(store, 8)
    assert record.failures() == []
    Attempt.begin(store).record_failure(Failure(1, "b", 7, "ValueError", "new\nsecond line"))
    (cause,) = record.failures()
    assert (cause.rank, cause.host, cause.step, cause.message) == (1, "b", 7, "new")
    assert record.failures() == []


@pytest.mark.parametrize(
    ("error", "final", "passing", "planned"),
    [
        (ValueError("why"), False, False, False),
        (ConfigError("why"), True, False, False),
        (StoreError("why"), False, True, False),
        (ConnectionResetError("why"), False, True, False),
        (RolledBack("why"), False, False, True),
    ],
)
def test_wrong_settings_are_final_outages_pass_and_roll_backs_are_planned(
    store: Store, error: Exception, final: bool, passing: bool, planned: bool
) -> None:
    record = RunRecord(store, 8)
    cause = record.cause_of(0, error)
    assert (cause.final, cause.passing, cause.planned) == (final, passing, planned)
    failure = Failure(0, "a", 1, type(error).__name__, "why", final=final, passing=passing)
    Attempt.begin(store).record_failure(failure)
    (left,) = record.failures()
    assert (left.final, left.passing, left.planned) == (final, passing, planned)


def test_failures_of_a_superseded_attempt_are_returned_too(store: Store) -> None:
    record = RunRecord(store, 8)
    ours, theirs = Attempt.begin(store), Attempt.begin(store)
    ours.record_failure(Failure(0, "a", 1, "Superseded", "taken over", final=True))
    theirs.record_failure(Failure(0, "b", 2, "LostContact", "gone", lost=True))
    assert [each.kind for each in record.failures()] == ["LostContact", "Superseded"]
    assert record.failures() == []


def test_a_stop_by_a_user_is_distinguished_from_one_by_the_supervisor(store: Store) -> None:
    record = RunRecord(store, 8)
    attempt = Attempt.begin(store)
    assert not record.stopped()
    attempt.write_status(Status(at=1, how="stopped", reason="told to stop; the state is saved"))
    assert record.stopped()
    assert not record.asked_to_stop()
    attempt.write_status(Status(at=1, how="stopped", reason=f"{STOP_REQUESTED}; the state is saved"))
    assert record.asked_to_stop()
    assert not RunRecord(store, 8).stopped(), "a start of before is over"


def test_an_error_is_judged_by_its_class(store: Store) -> None:
    record = RunRecord(store, 8)
    assert record.cause_of(0, ConfigError("bad")).final
    assert record.cause_of(0, Superseded("start 3 took over")).final
    assert record.cause_of(0, LostContact("rank 1 is gone")).lost
    assert record.cause_of(0, RuntimeError("[/w/gloo/transport/tcp/pair.cc:1] closed")).lost
    assert record.cause_of(0, dist.DistBackendError("NCCL error: remote process exited")).lost
    assert not record.cause_of(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")).lost
    assert record.cause_of(0, StoreError("away")).passing
    assert len(record.cause_of(0, ValueError("x" * 9999)).message) == MAX_CHARACTERS


def test_a_job_that_returns_a_value_is_tried_again_only_after_a_loss_or_an_outage() -> None:
    errors = [LostContact("rank 1 is gone"), StoreError("away"), DataError("a damaged face"), ValueError("a bug")]
    assert [ResultRecord().cause_of(1, error).final for error in errors] == [False, False, True, True]
