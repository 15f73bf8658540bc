import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.health.stragglers import WARN_ROWS, StragglerWarnings, slowest_rank
from emocap_pretrain.health.timing import SECTIONS
from emocap_pretrain.run_folder.documents import Straggler

HOSTS = [f"node{rank}" for rank in range(8)]


def seconds(**changes: float) -> dict[str, float]:
    return {"data": 0.01, "forward": 0.1, "loss": 0.05, "backward": 0.2, "update": 0.02, "saving": 0.0} | changes


def test_the_slowest_rank_is_named_with_host_section_and_factor() -> None:
    ranks = [seconds() for _ in range(8)]
    ranks[5] = seconds(data=0.14)
    straggler = slowest_rank(ranks, HOSTS)
    assert (straggler.rank, straggler.host, straggler.section) == (5, "node5", "data")
    assert straggler.factor == pytest.approx(2.0)
    assert straggler.excess_s == pytest.approx(0.13)
    assert straggler.score > 50


def test_time_in_collectives_does_not_make_a_rank_the_slowest() -> None:
    ranks = [seconds(loss=0.5, backward=0.9) for _ in range(8)]
    ranks[2] = seconds(forward=0.6)
    assert slowest_rank(ranks, HOSTS).rank == 2


def test_of_two_ranks_the_slow_one_is_compared_with_the_quick_one() -> None:
    assert slowest_rank([seconds(), seconds(forward=0.36)], HOSTS).factor == pytest.approx(3.0)


@given(times=st.lists(st.integers(0, 10_000), min_size=2, max_size=8))
def test_no_rank_is_slower_than_the_slowest(times: list[int]) -> None:
    straggler = slowest_rank([seconds(forward=each / 1000) for each in times], HOSTS)
    assert times[straggler.rank] == max(times)
    assert straggler.factor >= 1
    assert straggler.excess_s >= 0


def test_ranks_without_a_step_have_the_factor_one() -> None:
    nothing = [dict.fromkeys(SECTIONS, 0.0) for _ in range(3)]
    assert slowest_rank(nothing, HOSTS).factor == 1


def slow(rank: int, factor: float = 2.0) -> Straggler:
    return Straggler(rank, HOSTS[rank], "data", factor, excess_s=0.1, score=9.0)


def test_a_rank_that_stays_slow_gives_one_warning() -> None:
    warnings = StragglerWarnings()
    found = [warnings.check(slow(3), step_s=0.4) for _ in range(10)]
    assert [bool(each) for each in found] == [row == WARN_ROWS - 1 for row in range(10)]
    assert found[WARN_ROWS - 1] == (
        "rank 3 (node3) takes 2.0 times as long as the median rank, mostly in 'data': "
        "all ranks wait 0.100 s for it in every step."
    )


def test_ranks_that_are_slow_in_turn_give_no_warning() -> None:
    warnings = StragglerWarnings()
    assert not any(warnings.check(slow(row % 3), step_s=0.4) for row in range(20))


def test_a_delay_that_is_small_for_the_step_or_the_rank_gives_no_warning() -> None:
    warnings = StragglerWarnings()
    assert not any(warnings.check(slow(3), step_s=10.0) for _ in range(5))
    assert not any(warnings.check(slow(3, factor=1.2), step_s=0.4) for _ in range(5))


def test_a_rank_that_was_quick_in_between_gives_a_second_warning() -> None:
    warnings = StragglerWarnings()
    rows = [*[slow(3)] * WARN_ROWS, slow(3, factor=1.0), *[slow(3)] * WARN_ROWS]
    assert sum(bool(warnings.check(row, step_s=0.4)) for row in rows) == 2
