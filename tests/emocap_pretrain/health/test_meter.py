import time

import psutil
import pytest
import torch

from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.health.meter import OWN, Meter


def batch(rows: int, tokens: int) -> Batch:
    texts = Texts(torch.zeros((1, tokens), dtype=torch.int64), torch.ones((1, tokens), dtype=torch.bool))
    return Batch(torch.zeros((rows, 3, 2, 2), dtype=torch.uint8), {"global": texts})


def test_steps_samples_and_tokens_are_counted() -> None:
    meter = Meter("cpu")
    for rows, tokens in ((3, 50), (5, 10)):
        meter.count(batch(rows, tokens))
    own = meter.read()
    assert tuple(own) == OWN
    assert (own["steps"], own["samples"], own["tokens"]) == (2, 8, 60)


def test_seconds_are_those_since_the_last_reading() -> None:
    earliest = time.perf_counter()
    meter = Meter("cpu")
    time.sleep(0.02)
    first = meter.read()["seconds"]
    assert 0.02 <= first <= time.perf_counter() - earliest
    time.sleep(0.01)
    second = meter.read()["seconds"]
    assert second >= 0.01
    assert first + second <= time.perf_counter() - earliest


def test_a_reading_starts_a_new_count() -> None:
    meter = Meter("cpu")
    meter.count(batch(8, 8))
    meter.read()
    own = meter.read()
    assert (own["steps"], own["samples"], own["tokens"]) == (0, 0, 0)


def test_memory_is_that_of_this_process_and_there_is_no_device() -> None:
    own = Meter("cpu").read()
    assert own["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.05)
    assert (own["device_memory_gib"], own["device_utilization"]) == (0, 0)
