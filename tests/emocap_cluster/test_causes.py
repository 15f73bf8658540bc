from collections.abc import Sequence

import pytest
from emocap_cluster.causes import error_of, root_cause, was_announced
from emocap_cluster.errors import RankFailed
from emocap_cluster.restarts import Cause
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

LOST = Cause("LostContact", "rank 1 is gone", rank=0, step=7, lost=True)
BUG = Cause("ValueError", "bad row", rank=2, step=7)
DEAD = "Worker exit type: SYSTEM_ERROR Worker exit detail: connection error code 2. End of file."


def gone(text: str = DEAD, *, preempted: bool = False) -> Exception:
    return WorkerHealthCheckFailedError("failed", RayActorError("a", text, preempted=preempted))


def cause_of(rank: int, error: Exception) -> Cause:
    return Cause(type(error).__name__, str(error), rank, lost="gloo" in str(error))


def blame(errors: dict[int, Exception], left: Sequence[Cause] = ()) -> Cause:
    return root_cause(RankFailed("failed", errors=errors), left, cause_of, {1: "b"})


def test_what_a_rank_reported_says_more_than_what_ray_saw() -> None:
    assert blame({0: gone(), 2: ValueError("bad row")}, [LOST, BUG]) == BUG


def test_a_rank_that_went_without_a_word_comes_before_those_that_noticed() -> None:
    cause = blame({0: RuntimeError("gloo: connection closed"), 1: gone()}, [LOST])
    assert (cause.kind, cause.rank, cause.host) == ("Killed", 1, "b")


def test_the_watchdog_that_ended_its_process_after_a_word_is_believed() -> None:
    assert blame({0: gone()}, [LOST]) == LOST


def test_an_error_that_is_more_than_lost_contact_wins_without_any_word_too() -> None:
    cause = blame({0: RuntimeError("gloo: connection closed"), 1: ValueError("bad")})
    assert (cause.kind, cause.rank) == ("ValueError", 1)


def test_ranks_that_only_lost_contact_are_better_than_nothing() -> None:
    assert blame({0: RuntimeError("gloo")}).lost


def test_an_attempt_that_never_began_says_what_ray_said() -> None:
    assert blame({}) == Cause("StartFailed", "failed")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (DEAD, "Killed"),
        ("Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: Task was killed", "OutOfMemory"),
        ("The actor died because its node has died.", "NodeLost"),
    ],
)
def test_the_end_of_a_process_has_a_name(text: str, kind: str) -> None:
    cause = blame({1: gone(text)})
    assert cause.kind == kind
    assert "\n" not in str(cause)


def test_a_death_with_an_announced_node_is_a_preemption() -> None:
    assert was_announced(RankFailed("failed", errors={0: RuntimeError("gloo"), 1: gone(preempted=True)}))
    assert not was_announced(RankFailed("failed", errors={0: RuntimeError("gloo"), 1: gone()}))


def test_the_error_that_is_raised_is_that_of_the_rank_in_the_cause() -> None:
    errors = {0: ValueError("first"), 1: KeyError("k"), 2: ValueError("bad row")}
    assert error_of(RankFailed("failed", errors=errors), BUG) is errors[2]
    assert error_of(RankFailed("failed", errors={0: errors[0], 1: errors[1]}), BUG) is errors[0]
    assert error_of(RankFailed("failed", errors={1: errors[1]}), BUG) is None
    assert error_of(None, BUG) is None
    assert error_of(RankFailed("failed", errors=errors), None) is None
