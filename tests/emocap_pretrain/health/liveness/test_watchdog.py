"""Runs the threads of several ranks in one process with a real store. A rank that would exit stores its exit code."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from emocap_pretrain.health.liveness import Diagnosis, FailureDetector, HeartbeatExchange, Watchdog, exchange, watchdog
from emocap_pretrain.health.liveness.watchdog import HUNG_EXIT_CODE
from emocap_pretrain.health.position import DONE, TrainingPosition

NO_PROCESS = 2**22 + 1  # No process has this number.
THREADS = {"emocap-heartbeat", "emocap-watchdog"}


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(watchdog, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(watchdog, "KEEP_STORE_S", 0.1)


@dataclass
class OneRank:
    """Holds one rank with its threads.

    Attributes:
        exit_codes: The exit codes with which its watchdog would have ended the process.
        diagnoses: The diagnoses with which its watchdog has called `before_exit`.
    """

    rank: int
    position: TrainingPosition
    exchange: HeartbeatExchange
    detector: FailureDetector
    pids: list[int]
    exit_codes: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    diagnoses: list[Diagnosis] = field(default_factory=list)

    def watchdog(self, before_exit: Callable[[Diagnosis], Any] | None = None) -> Watchdog:
        return Watchdog(
            self.exchange,
            self.detector,
            rank=self.rank,
            pids=self.pids,
            thread=threading.get_ident(),
            before_exit=before_exit or self.diagnoses.append,
            exit_process=self.exit_codes.put,
        )

    def start_watchdog(self) -> Watchdog:
        dog = self.watchdog()
        dog.start()
        return dog


MakeRanks = Callable[..., list[OneRank]]


@pytest.fixture
def stores() -> list[Any]:
    """Returns a list with the only reference to the store of the job. A test that clears the list ends the store."""
    timeout = timedelta(seconds=20)
    return [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)]  # pyright: ignore[reportPrivateImportUsage]


@pytest.fixture
def make_ranks(stores: list[Any]) -> Iterator[MakeRanks]:
    """Makes ranks that share one store. The store exists longer than all their threads."""
    before = set(threading.enumerate())
    made: list[OneRank] = []

    def make(count: int, *, timeout_s: float = 600, silence_s: float = 600) -> list[OneRank]:
        hosts, pids = ["here"] * count, [os.getpid()] * count
        for rank in range(count):
            position = TrainingPosition()
            heartbeats = HeartbeatExchange(
                stores[0].clone(), position, rank=rank, world_size=count, read_all_after_s=timeout_s + 30
            )
            address = heartbeats.address
            detector = FailureDetector(hosts, rank=rank, store=address, timeout_s=timeout_s, silence_s=silence_s)
            made.append(OneRank(rank, position, heartbeats, detector, pids))
        for each in made:
            each.exchange.start()
        return made

    yield make
    for each in made:
        each.exchange.close(5)
    for thread in set(threading.enumerate()) - before:
        if thread.name in THREADS:
            thread.join(5)


def train(ranks: list[OneRank], seconds: float) -> None:
    """Lets all ranks make steps for a while."""
    end_s = time.monotonic() + seconds
    step = 1
    while time.monotonic() < end_s:
        step += 1
        for each in ranks:
            each.position.enter("training", step)
            each.position.enter_section("forward")
            each.position.enter_section("loss")
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_ranks_that_train_read_each_other_and_none_exits(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(3, timeout_s=0.4, silence_s=0.4)
    dogs = [each.start_watchdog() for each in ranks]
    train(ranks, 1.5)
    for dog, each in zip(dogs, ranks, strict=True):
        dog.close()
        assert each.exit_codes.empty()
    assert sorted(ranks[0].exchange.heartbeats or ()) == [0, 1, 2]
    assert sorted(ranks[2].exchange.heartbeats or ()) == [0, 2]


def test_a_heartbeat_holds_the_position_and_for_how_long_it_has_not_changed(make_ranks: MakeRanks) -> None:
    first, second = make_ranks(2)
    second.position.enter("training", 3)
    wait_until(lambda: bool(first.exchange.heartbeats and first.exchange.heartbeats[1].idle_s >= 0.3))
    assert first.exchange.heartbeats
    before = first.exchange.heartbeats[1]
    assert (before.rank, before.step, before.phase, before.bounded, before.ended) == (1, 3, "training", False, "")
    second.position.enter_section("data")
    wait_until(lambda: bool(first.exchange.heartbeats and first.exchange.heartbeats[1].phase == "data"))
    after = first.exchange.heartbeats[1]
    assert after.idle_s < before.idle_s
    assert after.number > before.number
    assert after.bounded


def test_a_rank_that_hangs_ends_all_and_its_own_stacks_are_printed(
    make_ranks: MakeRanks, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks = make_ranks(3, timeout_s=0.5)
    for each in ranks:
        each.start_watchdog()
        each.position.enter("training", 1)
    for each in ranks:
        each.position.enter("training", 2)
        each.position.enter_section("forward")
        if each.rank != 1:
            each.position.enter_section("loss")
    assert [each.exit_codes.get(timeout=15) for each in ranks] == [HUNG_EXIT_CODE] * 3
    messages = {each.diagnoses[0].message for each in ranks}
    assert len(messages) == 1
    assert "rank 1 (here) has been at step 2, forward, for" in messages.pop()
    printed = capfd.readouterr().err
    assert "Stacks of rank 1:\nThread MainThread:" in printed
    assert "Stacks of rank 2" not in printed


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_whose_heartbeats_stop_is_named_by_all_others(
    make_ranks: MakeRanks, victim: int, capfd: pytest.CaptureFixture[str]
) -> None:
    ranks = make_ranks(3, silence_s=0.6)
    others = [each for each in ranks if each.rank != victim]
    ranks[victim].pids[victim] = NO_PROCESS
    for each in others:
        each.start_watchdog()
    time.sleep(0.3)
    ranks[victim].exchange.close(5)
    assert [each.exit_codes.get(timeout=15) for each in others] == [HUNG_EXIT_CODE] * 2
    assert all(each.diagnoses[0].ranks == (victim,) for each in others)
    printed = capfd.readouterr().err
    assert f"watchdog: rank {victim} (here) sent no heartbeat for" in printed
    assert printed.count(f"Rank {victim}, seen from here: process {NO_PROCESS} is gone.") == 1


def test_a_rank_that_is_done_may_end_before_the_others(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2, silence_s=0.4)
    dog = ranks[0].start_watchdog()
    ranks[1].position.end(DONE)
    ranks[1].exchange.close(5)
    time.sleep(1.2)
    dog.close()
    assert ranks[0].exit_codes.empty()


def test_a_call_before_the_exit_that_never_returns_does_not_keep_the_process_alive(
    make_ranks: MakeRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "BEFORE_EXIT_S", 0.2)
    ranks = make_ranks(2, silence_s=0.4)
    never = threading.Event()
    ranks[0].watchdog(before_exit=lambda _: never.wait(60)).start()
    ranks[1].exchange.close(5)
    assert ranks[0].exit_codes.get(timeout=15) == HUNG_EXIT_CODE
    never.set()


def test_a_lost_rank_on_this_host_is_the_one_without_a_process(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(3)
    ranks[0].pids[2] = NO_PROCESS
    ranks[2].exchange.close(5)
    found = ranks[0].watchdog().explain_loss(wait_s=10, timed_out=False)
    assert found
    assert found.ranks == (2,)
    # The others report the same.
    assert ranks[1].watchdog().explain_loss(wait_s=10, timed_out=False) == found


def test_a_lost_rank_on_another_host_is_the_one_without_heartbeats(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(3)
    ranks[0].detector.hosts = ["here", "here", "there"]
    ranks[0].pids[2] = NO_PROCESS
    ranks[2].exchange.close(5)
    found = ranks[0].watchdog().explain_loss(wait_s=15, timed_out=False)
    assert found
    assert found.ranks == (2,)


def test_a_rank_that_has_failed_is_named_with_its_error(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    ranks[1].position.end("ValueError: no pixels")
    ranks[1].exchange.send_now()
    found = ranks[0].watchdog().explain_loss(wait_s=10, timed_out=False)
    assert found
    assert "rank 1 (here) has ended: ValueError: no pixels" in found.message


def test_no_rank_is_named_where_none_is_lost(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    assert ranks[0].watchdog().explain_loss(wait_s=0.5, timed_out=False) is None


def test_after_the_timeout_of_a_collective_the_rank_that_the_others_wait_for_is_named(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    ranks[0].position.enter("loss", 7)
    ranks[1].position.enter("data", 7)
    for each in ranks:
        each.exchange.send_now()
    time.sleep(0.3)
    found = ranks[0].watchdog().explain_loss(wait_s=10, timed_out=True)
    assert found
    assert found.ranks == (1,)


def test_a_lost_store_is_named_after_a_failed_collective(make_ranks: MakeRanks, stores: list[Any]) -> None:
    ranks = make_ranks(2)
    address = ranks[1].exchange.address
    stores.clear()
    wait_until(lambda: bool(ranks[1].exchange.error))
    found = ranks[1].watchdog().explain_loss(wait_s=10, timed_out=False)
    assert found == Diagnosis((), f"the job's store at {address} cannot be reached: its process or host is gone")


def test_a_rank_without_a_store_publishes_its_own_diagnosis(make_ranks: MakeRanks, stores: list[Any]) -> None:
    ranks = make_ranks(2)
    stores.clear()
    wait_until(lambda: bool(ranks[1].exchange.error))
    own = Diagnosis((0,), "rank 0 is gone")
    assert ranks[1].exchange.publish(own, 0.3) == own


def test_the_first_diagnosis_that_is_published_is_the_one_of_all_ranks(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    first = ranks[1].exchange.publish(Diagnosis((0,), "first"), 5)
    second = ranks[0].exchange.publish(Diagnosis((1,), "second"), 5)
    assert first == second == Diagnosis((0,), "first")
