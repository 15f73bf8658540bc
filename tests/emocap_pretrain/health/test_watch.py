from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.health.beat import DONE, LOST, PHASES, Beat, Pulse, Pulses, Stopwatch
from emocap_pretrain.health.watch import LONGEST_TICK_S, NAMED, Answer, Finding, Watch

TIMEOUT_S, SILENCE_S = 300, 60


def watch(ranks: int = 4) -> Watch:
    hosts = [f"node{rank // 2 + 1}" for rank in range(ranks)]
    return Watch(hosts, "10.0.0.1:29500 (rank 0's host node1)", timeout_s=TIMEOUT_S, silence_s=SILENCE_S)


def pulse(rank: int, count: int = 1, **changes: object) -> Pulse:
    plain = Pulse(rank, 100 + rank, count, step=7, phase="forward", idle_s=0.0, bounded=True)
    return plain._replace(**changes)  # type: ignore[arg-type]


def look_on(
    watcher: Watch, seconds: int, rounds: Iterable[list[Pulse] | None], *, whole: bool = True
) -> tuple[float, Finding] | None:
    """The first finding and its time, where a round of pulses arrives each second; None is no answer."""
    answer = None
    for now_s, pulses in zip(range(seconds), rounds, strict=False):
        if pulses is not None:
            answer = Answer(now_s, {each.rank: each for each in pulses}, whole)
        if found := watcher.look(float(now_s), answer):
            return now_s, found
    return None


def test_ranks_that_give_signs_of_life_and_make_progress_are_left_in_peace() -> None:
    rounds = ([pulse(rank, count, step=count) for rank in range(4)] for count in range(1000))
    assert look_on(watch(), 1000, rounds) is None


def test_a_rank_that_falls_silent_is_named_after_the_silence_with_its_host_and_place() -> None:
    rounds = ([pulse(rank, 5 if rank == 2 else count) for rank in range(4)] for count in range(1000))
    found = look_on(watch(), 200, rounds)
    assert found
    now_s, finding = found
    assert SILENCE_S <= now_s <= SILENCE_S + 10
    assert finding.ranks == (2,)
    assert finding.silent
    assert "rank 2 (node2) gave no sign of life for 60 s" in finding.text
    assert "step 7, forward" in finding.text


def test_a_silence_that_ends_in_time_is_none() -> None:
    rounds = ([pulse(rank, count // 50 if rank == 2 else count) for rank in range(4)] for count in range(1000))
    assert look_on(watch(), 1000, rounds) is None


@pytest.mark.parametrize("ended", [DONE, LOST])
def test_a_rank_that_has_taken_its_leave_may_be_silent(ended: str) -> None:
    rounds = (
        [pulse(rank, 5 if rank == 2 else count, ended=ended * (rank == 2)) for rank in range(4)]
        for count in range(1000)
    )
    assert look_on(watch(), 500, rounds) is None


def test_a_rank_that_ended_with_an_error_is_named_with_it_long_before_the_silence() -> None:
    rounds = (
        [pulse(rank, 5 if rank == 2 else count, ended="ValueError: no pixels" * (rank == 2)) for rank in range(4)]
        for count in range(1000)
    )
    found = look_on(watch(), 200, rounds)
    assert found
    assert found[0] < 20
    assert "rank 2 (node2) has ended: ValueError: no pixels" in found[1].text


def test_a_store_that_answers_no_more_is_named_as_that() -> None:
    rounds = ([pulse(rank, count) for rank in range(4)] if count < 5 else None for count in range(1000))
    found = look_on(watch(), 200, rounds)
    assert found
    assert SILENCE_S <= found[0] <= SILENCE_S + 10
    assert found[1].ranks == ()
    assert "no answer for 60 s from the job's store at 10.0.0.1:29500 (rank 0's host node1)" in found[1].text


def test_a_store_that_was_away_for_a_while_blames_no_rank_when_it_is_back() -> None:
    rounds = ([pulse(rank, count) for rank in range(4)] if count % 60 < 5 else None for count in range(1000))
    assert look_on(watch(), 500, rounds) is None


@given(asleep_s=st.floats(0, 1e6), at=st.integers(2, 50))
def test_who_was_asleep_itself_blames_nobody(asleep_s: float, at: int) -> None:
    watcher, now_s = watch(), 0.0
    for count in range(100):
        now_s += asleep_s if count == at else 1.0
        # The others slept too: for a few seconds longer than this one.
        seen = min(count, at) if count < at + 10 else count
        answer = Answer(count, {rank: pulse(rank, seen if rank else count) for rank in range(4)}, whole=True)
        assert watcher.look(now_s, answer) is None


def stuck(late: dict[int, dict[str, object]], others: dict[str, object], ranks: int = 4) -> Finding | None:
    """The finding where some ranks stand elsewhere than the others, and all for longer than allowed."""
    pulses = {
        rank: pulse(rank, 1, **({"idle_s": float(TIMEOUT_S)} | others | late.get(rank, {}))) for rank in range(ranks)
    }
    return watch(ranks).look(0.0, Answer(1, pulses, whole=True))


def test_the_rank_that_the_others_wait_for_is_the_one_at_an_earlier_place() -> None:
    earlier = [{"phase": name} for name in ("saving", "data", "forward")]
    for late in (*earlier, {"step": 6, "phase": "update"}, {"collectives": 9}):
        finding = stuck({2: late}, {"phase": "loss", "collectives": 10})
        assert finding
        assert finding.ranks == (2,), late
        assert not finding.silent
    assert "rank 2 (node2) has been at step 7, loss, for 300 s, and 3 other ranks wait for it" in finding.text


def test_ranks_that_all_stand_at_the_same_place_are_not_blamed() -> None:
    finding = stuck({}, {"phase": "loss"})
    assert finding
    assert finding.ranks == ()
    assert "all 4 ranks have stood at step 7, loss, for 300 s: a collective that not all take part in" in finding.text


def test_many_late_ranks_are_counted_rather_than_listed() -> None:
    finding = stuck({rank: {"phase": "data"} for rank in range(20)}, {"phase": "loss"}, ranks=24)
    assert finding
    assert finding.ranks == tuple(range(20))
    assert f"and {20 - NAMED} more have been at" in finding.text


def test_a_long_stay_where_there_is_no_bound_is_no_hang() -> None:
    assert stuck({}, {"idle_s": 1e5, "bounded": False}) is None


def test_a_rank_that_sees_only_some_others_does_not_judge_who_is_behind() -> None:
    pulses = {rank: pulse(rank, 1, idle_s=1e4) for rank in (0, 3)}
    assert watch().look(0.0, Answer(1, pulses, whole=False)) is None


def test_findings_and_pulses_travel_as_text() -> None:
    finding = Finding((1, 2), "rank 1 and é", silent=True)
    assert Finding.parse(finding.dump().encode()) == finding
    assert Pulse.parse(pulse(3, ended="ValueError: é").dump().encode()) == pulse(3, ended="ValueError: é")


@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PHASES), st.integers(0, 3)), min_size=2, max_size=9)
)
def test_nobody_is_further_behind_than_those_who_are_named(places: list[tuple[int, str, int]]) -> None:
    late = {
        rank: {"step": step, "phase": phase, "collectives": begun} for rank, (step, phase, begun) in enumerate(places)
    }
    finding = stuck(late, {}, ranks=len(places))
    assert finding
    least = min((step, PHASES.index(phase), begun) for step, phase, begun in places)
    behind = [rank for rank, (step, phase, begun) in enumerate(places) if (step, PHASES.index(phase), begun) == least]
    assert list(finding.ranks) == (behind if len(behind) < len(places) else [])


@given(ticks=st.lists(st.floats(0, 1e5), max_size=40))
def test_a_stopwatch_counts_no_more_than_the_time_that_passed_nor_than_its_ticks(ticks: list[float]) -> None:
    stopwatch, now_s = Stopwatch(LONGEST_TICK_S), 0.0
    stopwatch.look(now_s, "same")
    for tick_s in ticks:
        now_s += tick_s
        stopwatch.look(now_s, "same")
    assert stopwatch.seconds == pytest.approx(sum(min(tick_s, LONGEST_TICK_S) for tick_s in ticks), abs=1e-3)
    assert stopwatch.look(now_s, "another") == 0


def test_a_pulse_says_for_how_long_the_training_thread_has_stood_still() -> None:
    beat = Beat()
    pulses = Pulses(beat, 1, 42, Stopwatch(LONGEST_TICK_S), lambda: 5)
    beat.enter("training", 3)
    pulses.next(0.0)
    assert [pulses.next(float(now_s)).idle_s for now_s in range(1, 4)] == [1, 2, 3]
    beat.mark("forward")
    last = pulses.next(4.0)
    assert (last.idle_s, last.phase, last.step, last.collectives, last.number) == (0, "forward", 3, 5, 5)


def test_the_first_step_of_a_start_may_take_long_and_the_second_may_not() -> None:
    beat = Beat()
    assert not beat.bounded
    beat.enter("training", 10)
    beat.mark("data")
    assert beat.bounded, "loader processes that never deliver are found in the first step too"
    beat.mark("forward")
    assert not beat.bounded
    beat.enter("training", 11)
    assert beat.bounded
    for phase in ("saving", "evaluating"):
        beat.enter(phase, 11)
        assert not beat.bounded
