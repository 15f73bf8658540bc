"""Runs real processes with real faults, and checks exit codes, stderr and the failures in the folder of the run."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from emocap_shards.store import open_store
from pretrain_fakes import aged, changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.health.liveness.watchdog import HUNG_EXIT_CODE
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import Failure
from emocap_pretrain.run_folder.state import RunState

slow = pytest.mark.slow
EXIT_CODES = {
    HUNG_EXIT_CODE,
    1,
}  # The watchdog ends a rank, or its collective fails because another watchdog was quicker.
SCRIPT = Path(__file__).with_name("watched_rank.py")


@dataclass(frozen=True)
class Outcome:
    """Holds the exit codes and the stderr of the ranks that have ended, their failures, and the end of the run."""

    codes: dict[int, int]
    printed: dict[int, str]
    failures: list[Failure]
    ending: str


def run_job(config: Config, kind: str, victim: int, *, ranks: int, wait_s: float | None = None) -> Outcome:
    """Runs a job in which rank `victim` has a fault, until the other ranks have ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, str(SCRIPT), config.model_dump_json(), kind, str(victim)]
    command += [] if wait_s is None else [str(wait_s)]
    variables = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    waited = [rank for rank in range(ranks) if not (rank == victim and kind == "freeze")]
    try:
        printed = {rank: processes[rank].communicate(timeout=150)[1] for rank in waited}
        codes = {rank: processes[rank].returncode for rank in waited}
    finally:
        for each in processes:
            each.kill()
            each.communicate()
    store = open_store(config.url)
    if store.exists("attempts/00001/status.json"):
        aged(store, "attempts/00001/status.json", 3600)
    ending = RunState.read(store).newest.ending
    return Outcome(codes, printed, attempts.failures(store, 1), ending)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return changed(tiny_config, steps=400, cluster__timeout_s=6, cluster__silence_s=6)


def test_a_killed_rank_is_named_by_the_others_within_seconds(config: Config) -> None:
    outcome = run_job(config, "kill", 1, ranks=2, wait_s=60)
    assert outcome.codes == {0: 1, 1: -9}
    assert "LostContact: rank 1" in outcome.printed[0]
    assert "is gone" in outcome.printed[0]
    assert [(each.rank, each.kind, each.lost) for each in outcome.failures] == [(0, "LostContact", True)]
    assert "is gone" in outcome.ending


@slow
def test_an_error_of_one_rank_is_reported_by_the_others(config: Config) -> None:
    outcome = run_job(config, "error", 2, ranks=3, wait_s=60)
    assert outcome.codes == {0: 1, 1: 1, 2: 1}
    assert "has ended: ValueError: a picture without pixels" in outcome.printed[0]
    cause = attempts.cause(outcome.failures)
    assert cause
    assert (cause.rank, cause.kind, cause.step) == (2, "ValueError", 3)
    assert "ValueError: a picture without pixels" in outcome.ending


@slow
def test_a_sleeping_rank_is_named_prints_its_stacks_and_all_ranks_end(config: Config) -> None:
    outcome = run_job(config, "sleep", 1, ranks=3, wait_s=120)
    assert set(outcome.codes.values()) <= EXIT_CODES
    assert "watchdog: rank 1 " in outcome.printed[0]
    assert "step 3, forward" in outcome.printed[0]
    assert "2 other ranks wait for it" in outcome.printed[0]
    assert "time.sleep(3600)" in outcome.printed[1]
    cause = attempts.cause(outcome.failures)
    assert cause
    assert (cause.rank, cause.kind) == (1, "Hang")
    assert "cause_fault (watched_rank.py:" in cause.message


@slow
def test_a_rank_in_a_collective_that_the_others_never_call_is_named(config: Config) -> None:
    outcome = run_job(config, "collective", 1, ranks=3, wait_s=120)
    assert set(outcome.codes.values()) <= EXIT_CODES
    assert "watchdog: rank 1 " in outcome.printed[0]
    assert "dist.barrier()" in outcome.printed[1]


@slow
def test_a_hanging_rank_is_named_where_the_timeout_of_the_collective_comes_first(config: Config) -> None:
    outcome = run_job(changed(config, cluster__timeout_s=5), "sleep", 1, ranks=2, wait_s=4)
    assert outcome.codes[0] == 1
    assert outcome.codes[1] == HUNG_EXIT_CODE
    assert "LostContact: rank 1 " in outcome.printed[0]
    assert "time.sleep(3600)" in outcome.printed[1]


@slow
def test_a_frozen_rank_is_named_and_its_process_is_inspected_by_another_rank(config: Config) -> None:
    outcome = run_job(config, "freeze", 1, ranks=3, wait_s=120)
    assert set(outcome.codes.values()) <= EXIT_CODES
    assert "sent no heartbeat for 6 s" in outcome.printed[0]
    assert "is stopped" in outcome.printed[0]


@slow
def test_the_loss_of_the_store_of_the_job_is_reported_with_its_address(config: Config) -> None:
    outcome = run_job(config, "freeze", 0, ranks=2, wait_s=120)
    assert outcome.codes == {1: HUNG_EXIT_CODE}
    assert "the job's store at 127.0.0.1:" in outcome.printed[1]
    assert "has not answered for 6 s" in outcome.printed[1]
    assert "has not answered for 6 s" in outcome.ending
