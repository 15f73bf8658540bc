"""Tests `python benchmarks captioning` with small sizes, and that its record is refused if an answer is asked again."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.captioning.kills import KillPlan, _Killed, _repeated


def test_the_throughput_is_recorded_beside_the_limit(tmp_path: Path) -> None:
    words = ["captioning", "throughput", "--faces", "40", "--concurrency", "8", "--latency-s", "0.01", "--rounds", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "captioning.jsonl").read_text().splitlines()]
    assert [record["contender"] for record in records] == ["streamed", "whole"]
    for record in records:
        limit = record["setting"]["concurrency"] / record["setting"]["latency_s"]
        ratio = record["ratios"]["over the limit"]["median"]
        assert ratio == pytest.approx(record["value"]["median"] / limit)
        assert 0 < ratio < 1


@pytest.mark.slow
def test_kills_are_recorded(tmp_path: Path) -> None:
    words = ["captioning", "kills", "--kills", "3", "--concurrency", "4", "--out", str(tmp_path)]
    assert main(words) == 0
    (record,) = map(json.loads, (tmp_path / "captioning-kills.jsonl").read_text().splitlines())
    assert record["repetitions"] == 3
    assert record["value"]["median"] <= record["more"]["most_under_way"] <= 4


def test_a_stored_answer_that_is_asked_for_again_is_an_error() -> None:
    plan = KillPlan(kills=1, concurrency=4, latency_s=0.0, seed=0)
    killed = _Killed(received=2, stored=frozenset({"a-1"}), under_way=1)
    assert list(_repeated([killed], ["a-1", "b-1", "b-1", "c-1"], plan)) == [1]
    with pytest.raises(ValueError, match="1 stored answers were asked for again"):
        list(_repeated([killed], ["a-1", "b-1", "a-1"], plan))
    with pytest.raises(ValueError, match="2 requests were repeated, and 1 were under way"):
        list(_repeated([killed], ["b-1", "c-1", "b-1", "c-1"], plan))
