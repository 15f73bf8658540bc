"""Tests that a process sends few requests to a failing server, however many threads wait, and obeys Retry-After."""

import asyncio
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError
from emocap_shards.errors import StoreError
from emocap_shards.store import RetryConfig, TransferConfig, open_store, retry
from emocap_shards.store.budget import BURST, PER_S, Budget, server_of
from emocap_shards.store.failure import Refusal, retry_after_s
from emocap_shards.store.retry import Retrier
from test_store_web import DATA, answers

__all__ = ["answers"]  # a fixture
EAGER = RetryConfig(deadline_s=60, first_wait_s=0.01, longest_wait_s=0.05)
WAITING = 32


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def taken(budget):
    count = 0
    while not budget.take():
        count += 1
    return count


class DeniedError(PermissionError):
    """Is an error after which a request is not retried."""


class ResetError(ConnectionResetError):
    """Is an error after which a request is retried until the deadline."""


@pytest.mark.parametrize("kind", [DeniedError, ResetError])
def test_the_error_of_a_request_is_freed_without_the_garbage_collector(kind):
    found = []

    def seen(error):
        found.append(weakref.ref(error))
        return error

    async def fail(_number):
        raise seen(kind("x"))

    async def alive():
        patience = RetryConfig(deadline_s=0.2, first_wait_s=0.01, longest_wait_s=0.02)
        with suppress(DeniedError, StoreError):
            await Retrier(patience, "s3://faces", Budget())("read", "x", fail)
        return [error for each in found if (error := each())]

    gc.disable()
    try:
        assert asyncio.run(alive()) == []
    finally:
        gc.enable()
    assert found


def test_a_first_attempt_counts_as_the_longest_silence_at_most_however_long_it_took(monkeypatch):
    clock, began = Clock(), []
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=clock))

    async def fail(_number):
        began.append(clock.now)
        clock.now += 153 if len(began) == 1 else 10
        raise ResetError("x")

    # 25 s of the deadline are used when the first attempt fails, and 10 s more with each further one.
    with pytest.raises(StoreError, match="gave up after 5 attempts"):
        asyncio.run(Retrier(EAGER, "s3://faces", Budget())("write", "x", fail, size_bytes=8 << 20))
    assert began == [0, 153, 163, 173, 183]


def test_without_any_success_time_alone_earns_retries():
    clock = Clock()
    budget = Budget(clock)
    assert taken(budget) == BURST
    clock.now += 100 / PER_S
    assert taken(budget) == BURST  # more than that is not saved up
    clock.now += 2 / PER_S
    assert taken(budget) == 2
    assert budget.take() == pytest.approx(1 / PER_S)


def test_a_tenth_of_the_requests_may_be_retries_that_fail():
    budget = Budget(Clock())
    taken(budget)
    for _ in range(51):
        budget.succeeded(again=False)
    assert taken(budget) == 5


def test_retries_that_succeed_let_all_others_through():
    budget = Budget(Clock())
    taken(budget)
    budget.succeeded(again=True)
    rounds, waiting = 0, 1000
    while waiting > 0:
        let_through = taken(budget)
        assert let_through
        waiting, rounds = waiting - let_through, rounds + 1
        for _ in range(let_through):
            budget.succeeded(again=True)
    assert rounds < 200  # of one round trip each


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("s3://a/b", "s3://c", True),
        ("s3://a/b", "gs://a/b", False),
        ("https://a/b", "https://a/c", True),
        ("https://a/b", "https://b/b", False),
    ],
)
def test_a_server_has_one_budget(url, other, same):
    assert (server_of(url) == server_of(other)) == same


def test_during_an_outage_the_server_gets_few_requests_and_afterwards_all_are_served(s3, faulty_s3):
    store = open_store(s3, patience=EAGER, traffic=TransferConfig(in_flight=WAITING))
    store.put("x", DATA)
    faulty_s3.inject("503")
    faulty_s3.requests.clear()
    began = time.monotonic()
    with ThreadPoolExecutor(WAITING) as pool:
        reading = [pool.submit(store.read, "x") for _ in range(WAITING)]
        while len(faulty_s3.requests) < WAITING + BURST + 2:  # two more than at the beginning
            time.sleep(0.05)
        allowed = WAITING + BURST + PER_S * (time.monotonic() - began) + 1
        assert len(faulty_s3.requests) <= allowed
        faulty_s3.heal()
        assert all(each.result(60) == DATA for each in reading)


def unavailable(header, times):
    def odd(request):
        times.append(time.monotonic())
        if len(times) > 1:
            return False
        request.send(503, b"", {"Retry-After": header})
        return True

    return odd


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(answers, form):
    times = []
    header = "2" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    answers.odd = unavailable(header, times)
    assert open_store(answers.url, patience=EAGER).read("x") == DATA
    assert times[1] - times[0] >= (1.99 if form == "seconds" else 1.0)


def test_retry_after_ends_before_the_deadline(answers):
    times = []
    answers.odd = unavailable("86400", times)
    assert open_store(answers.url, patience=replace(EAGER, deadline_s=3)).read("x") == DATA
    assert len(times) == 2


def test_a_server_that_stays_unreachable_for_longer_is_given_up(answers):
    answers.odd = lambda request: request.send(503, b"", {"Retry-After": "86400"}) or True
    with pytest.raises(StoreError, match=r"\(503\).*gave up after [1-9] attempts in 2 s"):
        open_store(answers.url, patience=replace(EAGER, deadline_s=2)).read("x")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("7", 7), (" 7 ", 7), ("-7", 0), ("1e9", 0), ("9" * 400, 999999999999), ("soon", 0)],
)
def test_what_retry_after_says(text, seconds):
    answer = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPHeaders": {"retry-after": text}}}
    for error in (Refusal(503, retry_after=text), ClientError(answer, "GetObject")):
        assert retry_after_s(error) == seconds
    assert retry_after_s(OSError()) == 0
