import time

import psutil
import pytest
import torch

from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.health.metrics import RANK_METRICS, RankMeter, job_metrics
from emocap_pretrain.run_folder.documents import Straggler


def batch(rows: int, tokens: int) -> Batch:
    texts = Texts(torch.zeros((1, tokens), dtype=torch.int64), torch.ones((1, tokens), dtype=torch.bool))
    return Batch(torch.zeros((rows, 3, 2, 2), dtype=torch.uint8), {"global": texts})


def test_steps_samples_and_tokens_are_counted() -> None:
    meter = RankMeter("cpu")
    for rows, tokens in ((3, 50), (5, 10)):
        meter.count(batch(rows, tokens))
    own = meter.read()
    assert tuple(own) == RANK_METRICS
    assert (own["steps"], own["samples"], own["tokens"]) == (2, 8, 60)


def test_seconds_are_since_the_last_reading() -> None:
    earliest = time.perf_counter()
    meter = RankMeter("cpu")
    time.sleep(0.02)
    first = meter.read()["seconds"]
    assert 0.02 <= first <= time.perf_counter() - earliest
    time.sleep(0.01)
    second = meter.read()["seconds"]
    assert second >= 0.01
    assert first + second <= time.perf_counter() - earliest


def test_a_reading_starts_a_new_count() -> None:
    meter = RankMeter("cpu")
    meter.count(batch(8, 8))
    meter.read()
    own = meter.read()
    assert (own["steps"], own["samples"], own["tokens"]) == (0, 0, 0)


def test_memory_is_of_this_process_and_zero_for_a_missing_device() -> None:
    own = RankMeter("cpu").read()
    assert own["memory_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.05)
    assert (own["device_memory_gib"], own["device_utilization"]) == (0, 0)


SECONDS = {"data": 0.01, "forward": 0.1, "loss": 0.05, "backward": 0.2, "update": 0.02, "saving": 0.0}


def measured(**changes: float) -> dict[str, float]:
    own = dict(zip(RANK_METRICS, (2.0, 4.0, 32.0, 640.0, 1.5, 0.0, 0.0), strict=True))
    return own | SECONDS | changes


STRAGGLER = Straggler(1, "node1", "data", factor=2.0, excess_s=0.1, score=9.0)


def test_rates_are_sums_over_ranks_and_memory_is_the_largest() -> None:
    row = job_metrics([measured(), measured(samples=30.0, memory_gib=2.5, data=0.05)], STRAGGLER)
    assert row["samples_per_s"] == 62 / 2
    assert row["text_tokens_per_s"] == 1280 / 2
    assert row["memory_gib"] == 2.5
    assert row["time/step_s"] == 0.5
    assert row["data_wait_share"] == pytest.approx(0.03 / 0.5)
    assert row["time/data_s"] == pytest.approx(0.03)
    assert row["time/data_s_slowest"] == 0.05
    assert (row["straggler_rank"], row["straggler_factor"]) == (1, 2)
    assert "device_memory_gib" not in row


def test_a_rank_alone_has_no_straggler_and_a_gpu_has_its_metrics() -> None:
    row = job_metrics([measured(device_memory_gib=70.0, device_utilization=0.9)], None)
    assert "straggler_rank" not in row
    assert (row["device_memory_gib"], row["device_utilization"], row["device_utilization_lowest"]) == (70, 0.9, 0.9)
