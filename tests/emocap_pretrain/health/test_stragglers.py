import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.health import readings
from emocap_pretrain.health.meter import OWN
from emocap_pretrain.health.stragglers import ROWS, Report, Stragglers, slowest
from emocap_pretrain.health.timing import SECTIONS

HOSTS = [f"node{rank}" for rank in range(8)]


def seconds(**changes: float) -> dict[str, float]:
    return {"data": 0.01, "forward": 0.1, "loss": 0.05, "backward": 0.2, "update": 0.02, "saving": 0.0} | changes


def test_the_slowest_rank_is_named_with_host_section_and_factor() -> None:
    ranks = [seconds() for _ in range(8)]
    ranks[5] = seconds(data=0.14)
    report = slowest(ranks, HOSTS)
    assert (report.rank, report.host, report.section) == (5, "node5", "data")
    assert report.factor == pytest.approx(2.0)
    assert report.excess_s == pytest.approx(0.13)
    assert report.score > 50


def test_ranks_that_wait_in_collectives_are_not_blamed_for_it() -> None:
    ranks = [seconds(loss=0.5, backward=0.9) for _ in range(8)]
    ranks[2] = seconds(forward=0.6)
    assert slowest(ranks, HOSTS).rank == 2


def test_of_two_ranks_the_slow_one_has_the_quick_one_as_its_measure() -> None:
    assert slowest([seconds(), seconds(forward=0.36)], HOSTS).factor == pytest.approx(3.0)


@given(times=st.lists(st.integers(0, 10_000), min_size=2, max_size=8))
def test_nobody_is_slower_than_the_slowest(times: list[int]) -> None:
    report = slowest([seconds(forward=each / 1000) for each in times], HOSTS)
    assert times[report.rank] == max(times)
    assert report.factor >= 1
    assert report.excess_s >= 0


def test_ranks_that_did_nothing_yet_are_no_stragglers() -> None:
    nothing = [dict.fromkeys(SECTIONS, 0.0) for _ in range(3)]
    assert slowest(nothing, HOSTS).factor == 1


def slow(rank: int, factor: float = 2.0) -> Report:
    return Report(rank, HOSTS[rank], "data", factor, excess_s=0.1, score=9.0)


def test_a_rank_that_stays_slow_is_warned_of_once() -> None:
    stragglers = Stragglers()
    told = [stragglers.look(slow(3), step_s=0.4) for _ in range(10)]
    assert [bool(each) for each in told] == [row == ROWS - 1 for row in range(10)]
    assert told[ROWS - 1] == (
        "rank 3 (node3) is 2.0 times as slow as the others, mostly in 'data': all wait 0.100 s for it in every step."
    )


def test_ranks_that_take_turns_in_being_slow_are_noise() -> None:
    stragglers = Stragglers()
    assert not any(stragglers.look(slow(row % 3), step_s=0.4) for row in range(20))


def test_what_a_step_does_not_feel_is_no_warning() -> None:
    stragglers = Stragglers()
    assert not any(stragglers.look(slow(3), step_s=10.0) for _ in range(5))
    assert not any(stragglers.look(slow(3, factor=1.2), step_s=0.4) for _ in range(5))


def test_after_a_rank_was_quick_again_it_may_be_warned_of_again() -> None:
    stragglers = Stragglers()
    rows = [*[slow(3)] * ROWS, slow(3, factor=1.0), *[slow(3)] * ROWS]
    assert sum(bool(stragglers.look(row, step_s=0.4)) for row in rows) == 2


def measured(**changes: float) -> dict[str, float]:
    own = dict(zip(OWN, (2.0, 4.0, 32.0, 640.0, 1.5, 0.0, 0.0), strict=True))
    return own | seconds() | changes


def test_rates_are_sums_over_ranks_and_memory_is_the_largest() -> None:
    row = readings.metrics([measured(), measured(samples=30.0, memory_gib=2.5, data=0.05)], slow(1))
    assert row["samples_per_s"] == 62 / 2
    assert row["text_tokens_per_s"] == 1280 / 2
    assert row["memory_gib"] == 2.5
    assert row["time/step_s"] == 0.5
    assert row["data_wait_share"] == pytest.approx(0.03 / 0.5)
    assert row["time/data_s"] == pytest.approx(0.03)
    assert row["time/data_s_slowest"] == 0.05
    assert (row["straggler_rank"], row["straggler_factor"]) == (1, 2)
    assert "device_memory_gib" not in row


def test_alone_there_is_no_straggler_and_a_gpu_has_its_numbers() -> None:
    row = readings.metrics([measured(device_memory_gib=70.0, device_utilization=0.9)], None)
    assert "straggler_rank" not in row
    assert (row["device_memory_gib"], row["device_utilization"], row["device_utilization_lowest"]) == (70, 0.9, 0.9)
