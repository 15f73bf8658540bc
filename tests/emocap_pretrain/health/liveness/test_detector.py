from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.health.liveness import Diagnosis, FailureDetector, Heartbeat
from emocap_pretrain.health.liveness.detector import LOST_S, MAX_NAMED
from emocap_pretrain.health.position import DONE, LOST, PHASES

TIMEOUT_S, SILENCE_S = 300, 60


def detector(ranks: int = 4) -> FailureDetector:
    """Returns the detector of rank 0; there are two ranks on each host."""
    hosts = [f"node{rank // 2 + 1}" for rank in range(ranks)]
    store = "10.0.0.1:29500 (rank 0's host node1)"
    return FailureDetector(hosts, rank=0, store=store, timeout_s=TIMEOUT_S, silence_s=SILENCE_S)


def heartbeat(rank: int, number: int = 1, **changes: object) -> Heartbeat:
    plain = Heartbeat(rank, number, step=7, phase="forward", idle_s=0.0, bounded=True)
    return plain._replace(**changes)  # type: ignore[arg-type]


def check_each_second(seconds: int, rounds: Iterable[list[Heartbeat] | None]) -> tuple[float, Diagnosis] | None:
    """Returns the first diagnosis and its time.

    Args:
        seconds: The number of checks.
        rounds: The heartbeats that arrive each second; None if the store does not answer.
    """
    failures, newest = detector(), None
    for now_s, heartbeats in zip(range(seconds), rounds, strict=False):
        if heartbeats is not None:
            newest = {each.rank: each for each in heartbeats}
        if diagnosis := failures.check(float(now_s), newest):
            return now_s, diagnosis
    return None


def test_ranks_that_send_heartbeats_and_make_progress_give_no_diagnosis() -> None:
    rounds = ([heartbeat(rank, number, step=number) for rank in range(4)] for number in range(1000))
    assert check_each_second(1000, rounds) is None


def test_a_rank_without_heartbeats_is_named_with_its_host_and_position_after_the_silence() -> None:
    rounds = ([heartbeat(rank, 5 if rank == 2 else number) for rank in range(4)] for number in range(1000))
    found = check_each_second(200, rounds)
    assert found
    now_s, diagnosis = found
    assert SILENCE_S <= now_s <= SILENCE_S + 10
    assert diagnosis.ranks == (2,)
    assert diagnosis.silent
    assert "rank 2 (node2) sent no heartbeat for 60 s" in diagnosis.message
    assert "last heartbeat at step 7, forward" in diagnosis.message


def test_a_silence_that_ends_before_the_limit_gives_no_diagnosis() -> None:
    rounds = ([heartbeat(rank, number // 50 if rank == 2 else number) for rank in range(4)] for number in range(1000))
    assert check_each_second(1000, rounds) is None


@pytest.mark.parametrize("ended", [DONE, LOST])
def test_a_rank_that_has_ended_without_its_own_error_may_be_silent(ended: str) -> None:
    rounds = (
        [heartbeat(rank, 5 if rank == 2 else number, ended=ended * (rank == 2)) for rank in range(4)]
        for number in range(1000)
    )
    assert check_each_second(500, rounds) is None


def test_a_rank_that_has_ended_with_an_error_is_named_with_it_long_before_the_silence() -> None:
    rounds = (
        [heartbeat(rank, 5 if rank == 2 else number, ended="ValueError: no pixels" * (rank == 2)) for rank in range(4)]
        for number in range(1000)
    )
    found = check_each_second(200, rounds)
    assert found
    assert found[0] < 20
    assert "rank 2 (node2) has ended: ValueError: no pixels" in found[1].message


def test_a_store_that_does_not_answer_is_named_with_its_address() -> None:
    rounds = ([heartbeat(rank, number) for rank in range(4)] if number < 5 else None for number in range(1000))
    found = check_each_second(200, rounds)
    assert found
    assert SILENCE_S <= found[0] <= SILENCE_S + 10
    assert found[1].ranks == ()
    message = found[1].message
    assert "the job's store at 10.0.0.1:29500 (rank 0's host node1) has not answered for 60 s" in message


def test_no_rank_is_named_after_the_store_was_unreachable_for_a_while() -> None:
    rounds = ([heartbeat(rank, number) for rank in range(4)] if number % 60 < 5 else None for number in range(1000))
    assert check_each_second(500, rounds) is None


@given(asleep_s=st.floats(0, 1e6), at=st.integers(2, 50))
def test_a_process_that_was_asleep_itself_names_no_rank(asleep_s: float, at: int) -> None:
    failures, now_s = detector(), 0.0
    for number in range(100):
        now_s += asleep_s if number == at else 1.0
        # The others were asleep too, and wake up 10 s after this process.
        others = min(number, at) if number < at + 10 else number
        heartbeats = {rank: heartbeat(rank, others if rank else number) for rank in range(4)}
        assert failures.check(now_s, heartbeats) is None


def diagnosis_of_hang(
    slow: dict[int, dict[str, object]], others: dict[str, object], ranks: int = 4
) -> Diagnosis | None:
    """Returns the diagnosis for ranks that make no progress for longer than allowed.

    Args:
        slow: The fields of the heartbeats of some ranks.
        others: The fields of the heartbeats of all other ranks.
        ranks: The number of ranks.
    """
    idle = {"idle_s": float(TIMEOUT_S)} | others
    heartbeats = {rank: heartbeat(rank, 1, **(idle | slow.get(rank, {}))) for rank in range(ranks)}
    return detector(ranks).check(0.0, heartbeats)


def test_the_rank_at_the_earliest_position_is_named_because_the_others_wait_for_it() -> None:
    earlier: list[dict[str, object]] = [{"phase": name} for name in ("saving", "data", "forward")]
    diagnosis = None
    for slow in (*earlier, {"step": 6, "phase": "update"}, {"collectives": 9}):
        diagnosis = diagnosis_of_hang({2: slow}, {"phase": "loss", "collectives": 10})
        assert diagnosis
        assert diagnosis.ranks == (2,), slow
        assert not diagnosis.silent
    assert diagnosis
    assert "rank 2 (node2) has been at step 7, loss, for 300 s, and 3 other ranks wait for it" in diagnosis.message


def test_a_rank_that_hangs_before_a_save_is_named_and_not_the_ranks_that_wait_in_the_save() -> None:
    waiting = {"phase": "saving", "bounded": False}
    diagnosis = diagnosis_of_hang({2: {"phase": "training", "bounded": True}}, waiting)
    assert diagnosis
    assert diagnosis.ranks == (2,)
    assert "rank 2 (node2) has been at step 7, training, for 300 s, and 3 other ranks wait" in diagnosis.message


def test_no_rank_is_named_where_all_are_at_the_same_position() -> None:
    diagnosis = diagnosis_of_hang({}, {"phase": "loss"})
    assert diagnosis
    assert diagnosis.ranks == ()
    assert "all 4 ranks have been at step 7, loss, for 300 s: not all ranks call the same" in diagnosis.message


def test_many_slow_ranks_are_counted_and_a_few_are_listed() -> None:
    diagnosis = diagnosis_of_hang({rank: {"phase": "data"} for rank in range(20)}, {"phase": "loss"}, ranks=24)
    assert diagnosis
    assert diagnosis.ranks == tuple(range(20))
    assert f"and {20 - MAX_NAMED} more have been at" in diagnosis.message


def test_a_long_stay_in_an_unbounded_phase_is_not_a_hang() -> None:
    assert diagnosis_of_hang({}, {"idle_s": 1e5, "bounded": False}) is None


def test_a_rank_that_reads_only_some_heartbeats_does_not_diagnose_a_hang() -> None:
    heartbeats = {rank: heartbeat(rank, 1, idle_s=1e4) for rank in (0, 3)}
    assert detector().check(0.0, heartbeats) is None


@given(
    places=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PHASES), st.integers(0, 3)), min_size=2, max_size=9)
)
def test_exactly_the_ranks_at_the_earliest_position_are_named(places: list[tuple[int, str, int]]) -> None:
    fields: dict[int, dict[str, object]] = {
        rank: {"step": step, "phase": phase, "collectives": begun} for rank, (step, phase, begun) in enumerate(places)
    }
    diagnosis = diagnosis_of_hang(fields, {}, ranks=len(places))
    assert diagnosis
    orders = [(step, PHASES.index(phase), begun) for step, phase, begun in places]
    earliest = [rank for rank, order in enumerate(orders) if order == min(orders)]
    assert list(diagnosis.ranks) == (earliest if len(earliest) < len(places) else [])


def test_after_a_failed_collective_a_rank_without_a_new_heartbeat_is_gone_within_seconds() -> None:
    failures, found = detector(), None
    for now_s in range(10):
        heartbeats = {rank: heartbeat(rank, 5 if rank == 2 else now_s) for rank in range(4)}
        found = failures.explain_loss(float(now_s), heartbeats, dead=(), timed_out=False)
        assert bool(found) == (now_s >= LOST_S)
        if found:
            break
    assert found
    assert (found.ranks, found.silent) == ((2,), True)
    assert found.message == "rank 2 (node2) is gone; last heartbeat at step 7, forward"


def test_after_a_failed_collective_a_dead_process_is_gone_at_once_unless_it_has_given_its_reason() -> None:
    heartbeats = {rank: heartbeat(rank) for rank in range(4)}
    found = detector().explain_loss(0.0, heartbeats, dead={1}, timed_out=False)
    assert found
    assert found.ranks == (1,)
    heartbeats[1] = heartbeat(1, ended="ValueError: no pixels")
    found = detector().explain_loss(0.0, heartbeats, dead={1}, timed_out=False)
    assert found
    assert "rank 1 (node1) has ended: ValueError: no pixels" in found.message


@pytest.mark.parametrize("ended", [DONE, LOST])
def test_after_a_failed_collective_a_rank_that_ended_without_its_own_error_is_not_named(ended: str) -> None:
    heartbeats = {rank: heartbeat(rank, ended=ended * (rank == 2)) for rank in range(4)}
    assert detector().explain_loss(0.0, heartbeats, dead={2}, timed_out=False) is None


def test_diagnoses_and_heartbeats_are_read_back_from_their_json() -> None:
    diagnosis = Diagnosis((1, 2), "rank 1 and é", silent=True)
    assert Diagnosis.from_json(diagnosis.to_json().encode()) == diagnosis
    ended = heartbeat(3, ended="ValueError: é")
    assert Heartbeat.from_json(ended.to_json().encode()) == ended
