import time

import psutil
import pytest
import torch

from emocap_pretrain.batch import Batch, Tokens
from emocap_pretrain.meter import OWN, Meter
from emocap_pretrain.runtime import Rank
from emocap_pretrain.world import World


def batch(rows: int, tokens: int) -> Batch:
    texts = Tokens(torch.zeros((1, tokens), dtype=torch.int64), torch.ones((1, tokens), dtype=torch.bool))
    nothing = Tokens(texts.ids[:0], texts.mask[:0])
    numbers = torch.zeros(rows, dtype=torch.int64)
    images = torch.zeros((rows, 3, 2, 2), dtype=torch.uint8)
    return Batch(images, texts, nothing, nothing, numbers[:0], numbers, numbers)


def meter(ranks: int = 1) -> Meter:
    return Meter(World(Rank(0, ranks, 0, ranks), "cpu", None))


def test_rates_are_counts_over_time_for_all_ranks():
    earliest = time.perf_counter()
    counter = meter(ranks=4)
    latest = time.perf_counter()
    counter.count(batch(3, 50))
    counter.count(batch(5, 10))
    time.sleep(0.02)
    shortest = time.perf_counter() - latest
    row = counter.read()
    longest = time.perf_counter() - earliest
    assert 4 * 8 / longest <= row["samples_per_s"] <= 4 * 8 / shortest
    assert row["text_tokens_per_s"] / row["samples_per_s"] == pytest.approx(60 / 8)


def test_waiting_for_data_is_a_share_of_the_time():
    counter = meter()
    with counter.waiting():
        time.sleep(0.03)
    time.sleep(0.03)
    with counter.waiting():
        time.sleep(0.03)
    share = counter.read()["data_wait_share"]
    assert 0.06 / 0.2 < share < 0.97


def test_a_reading_starts_a_new_count():
    counter = meter()
    with counter.waiting():
        counter.count(batch(8, 8))
    counter.read()
    row = counter.read()
    assert (row["samples_per_s"], row["text_tokens_per_s"], row["data_wait_share"]) == (0, 0, 0)


def test_memory_is_that_of_this_process():
    row = meter().read()
    assert row["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.05)
    assert "device_memory_gib" not in row


def test_what_a_rank_did_is_counted_for_itself_alone():
    counter = meter(ranks=4)
    for rows, tokens in ((3, 50), (5, 10)):
        counter.count(batch(rows, tokens))
    own = counter.own()
    assert tuple(own) == OWN
    assert (own["steps"], own["samples"], own["tokens"]) == (2, 8, 60)
    assert own["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.05)
    assert (own["device_memory_gib"], own["device_utilization"]) == (0, 0)
    assert counter.own()["samples"] == 0
