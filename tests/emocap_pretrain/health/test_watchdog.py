"""The threads of several ranks in one process, around a real store; who leaves here only says so."""

import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from emocap_pretrain.health import exchange as exchanges
from emocap_pretrain.health import watchdog as watchdogs
from emocap_pretrain.health.beat import DONE, Beat, Pulses, Stopwatch
from emocap_pretrain.health.contact import who_is_gone
from emocap_pretrain.health.exchange import Exchange, Line
from emocap_pretrain.health.watch import LONGEST_TICK_S, Finding, Watch
from emocap_pretrain.health.watchdog import HUNG, Member, Watchdog

HERE = threading.get_ident()

NOBODY = 2**22 + 1  # No process has this number.
EXCHANGES: list[Exchange] = []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "BEAT_S", 0.05)
    monkeypatch.setattr(watchdogs, "BEAT_S", 0.05)
    monkeypatch.setattr(watchdogs, "LINGER_S", 0.1)


@pytest.fixture
def store() -> Iterator[Any]:
    """The job's store; it outlives the threads that the test has started around it."""
    before = set(threading.enumerate())
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    for each in EXCHANGES:
        each.close(5)
    EXCHANGES.clear()
    for thread in set(threading.enumerate()) - before:
        if thread.name in {"emocap-beat", "emocap-watchdog"}:
            thread.join(5)


@dataclass
class OneRank:
    """One rank with its threads."""

    rank: int
    beat: Beat
    exchange: Exchange
    watch: Watch
    members: list[Member]
    left: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    words: list[Finding] = field(default_factory=list)

    def guard(self) -> Watchdog:
        return Watchdog(self.exchange, self.watch, self.members, self.rank, HERE, self.words.append, self.left.put)


def ranks(store: Any, count: int, *, timeout_s: float = 600, silence_s: float = 600) -> list[OneRank]:
    members = [Member("here", os.getpid()) for _ in range(count)]
    lines = [Line(store.clone()) for _ in range(count)]
    beats = [Beat() for _ in range(count)]
    each_pulses = [
        Pulses(beat, rank, os.getpid(), Stopwatch(LONGEST_TICK_S), lambda: 0) for rank, beat in enumerate(beats)
    ]
    for line, pulses in zip(lines, each_pulses, strict=True):
        line.begin(pulses.next(0.0))
    found: list[OneRank] = []
    for rank, (line, pulses) in enumerate(zip(lines, each_pulses, strict=True)):
        watch = Watch(["here"] * count, line.address, timeout_s=timeout_s, silence_s=silence_s)
        exchange = Exchange(line, pulses, rank=rank, world=count, alarm_s=timeout_s + 30)
        EXCHANGES.append(exchange)
        found.append(OneRank(rank, beats[rank], exchange, watch, members))
    return found


def train(members: list[OneRank], seconds: float, *, without: int | None = None) -> None:
    """All make steps for a while, except one that stays in the forward pass of step 2."""
    end_s = time.monotonic() + seconds
    step = 1
    while time.monotonic() < end_s:
        step += 1
        for member in members:
            if member.rank == without and step > 2:
                continue
            member.beat.enter("training", step)
            member.beat.mark("forward")
            if without is None or (step == 2 and member.rank != without):
                member.beat.mark("loss")
        time.sleep(0.02)
        if without is not None and step == 2:
            return


def test_ranks_that_train_see_each_other_and_none_leaves(store: Any) -> None:
    members = ranks(store, 3, timeout_s=0.4, silence_s=0.4)
    dogs = [member.guard() for member in members]
    train(members, 1.5)
    for dog, member in zip(dogs, members, strict=True):
        dog.close()
        member.exchange.close(5)
        assert member.left.empty()
    assert members[0].exchange.answer is not None
    assert sorted(members[0].exchange.answer.pulses) == [0, 1, 2]
    assert members[2].exchange.answer is not None
    assert sorted(members[2].exchange.answer.pulses) == [0, 2]


def test_a_rank_that_hangs_ends_all_and_its_own_stacks_are_shown(store: Any, capfd: pytest.CaptureFixture[str]) -> None:
    members = ranks(store, 3, timeout_s=0.5)
    for member in members:
        member.guard()
        member.beat.enter("training", 1)
    train(members, 1, without=1)
    assert [member.left.get(timeout=15) for member in members] == [HUNG] * 3
    texts = {member.words[0].text for member in members}
    assert len(texts) == 1
    assert "rank 1 (here) has been at step 2, forward, for" in texts.pop()
    printed = capfd.readouterr().err
    assert "What rank 1 is doing:\nThread MainThread:" in printed
    assert "What rank 2 is doing" not in printed


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_whose_pulses_stop_is_missed_by_all_others(
    store: Any, victim: int, capfd: pytest.CaptureFixture[str]
) -> None:
    members = ranks(store, 3, silence_s=0.6)
    others = [member for member in members if member.rank != victim]
    members[victim].members[victim] = Member("here", NOBODY)
    for member in others:
        member.guard()
    time.sleep(0.3)
    members[victim].exchange.close(5)
    assert [member.left.get(timeout=15) for member in others] == [HUNG] * 2
    assert all(member.words[0].ranks == (victim,) for member in others)
    printed = capfd.readouterr().err
    assert f"watchdog: rank {victim} (here) gave no sign of life" in printed
    assert printed.count(f"Rank {victim}, seen from here: process {NOBODY} is gone.") == 1


def test_a_rank_that_has_done_its_work_may_leave_before_the_others(store: Any) -> None:
    members = ranks(store, 2, silence_s=0.4)
    dog = members[0].guard()
    members[1].beat.end(DONE)
    members[1].exchange.close(5)
    time.sleep(1.2)
    dog.close()
    assert members[0].left.empty()


def test_a_last_word_that_never_returns_does_not_keep_the_process(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdogs, "LAST_WORD_S", 0.2)
    members = ranks(store, 2, silence_s=0.4)
    never = threading.Event()
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    Watchdog(
        members[0].exchange, members[0].watch, members[0].members, 0, HERE, lambda _: never.wait(60) and None, left.put
    )
    members[1].exchange.close(5)
    assert left.get(timeout=15) == HUNG
    never.set()


def test_who_is_gone_is_the_rank_without_a_process(store: Any) -> None:
    members = ranks(store, 3)
    members[0].members[2] = Member("here", NOBODY)
    members[2].exchange.close(5)
    found = who_is_gone(members[0].exchange, members[0].watch, members[0].members, 0, wait_s=10, timed_out=False)
    assert found
    assert found.ranks == (2,)
    # The others say the same.
    assert (
        who_is_gone(members[1].exchange, members[1].watch, members[1].members, 1, wait_s=10, timed_out=False) == found
    )


def test_who_is_gone_on_another_host_is_the_rank_without_pulses(store: Any) -> None:
    members = ranks(store, 3)
    members[0].members[2] = Member("there", NOBODY)
    members[2].exchange.close(5)
    found = who_is_gone(members[0].exchange, members[0].watch, members[0].members, 0, wait_s=15, timed_out=False)
    assert found
    assert found.ranks == (2,)


def test_a_rank_that_failed_is_told_with_its_reason(store: Any) -> None:
    members = ranks(store, 2)
    members[1].beat.end("ValueError: no pixels")
    members[1].exchange.hurry()
    found = who_is_gone(members[0].exchange, members[0].watch, members[0].members, 0, wait_s=10, timed_out=False)
    assert found
    assert "rank 1 (here) has ended: ValueError: no pixels" in found.text


def test_nobody_is_blamed_where_nobody_is_gone(store: Any) -> None:
    members = ranks(store, 2)
    assert (
        who_is_gone(members[0].exchange, members[0].watch, members[0].members, 0, wait_s=0.5, timed_out=False) is None
    )


def test_after_a_wait_in_vain_it_is_the_rank_that_is_behind(store: Any) -> None:
    members = ranks(store, 2)
    members[0].beat.enter("loss", 7)
    members[1].beat.enter("data", 7)
    for member in members:
        member.exchange.hurry()
    time.sleep(0.3)
    found = who_is_gone(members[0].exchange, members[0].watch, members[0].members, 0, wait_s=10, timed_out=True)
    assert found
    assert found.ranks == (1,)


def test_the_first_finding_stands(store: Any) -> None:
    members = ranks(store, 2)
    first = members[1].exchange.post(Finding((0,), "first"), 5)
    second = members[0].exchange.post(Finding((1,), "second"), 5)
    assert first == second == Finding((0,), "first")
