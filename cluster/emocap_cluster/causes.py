"""Which of the failures that an attempt shows is the one that the others followed from."""

from collections.abc import Callable, Mapping, Sequence

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.exceptions import RayError as _RayError

from emocap_cluster.errors import RankFailed
from emocap_cluster.restarts import Cause

GONE = ("Killed", "NodeLost")  # Kinds of an end without a word.
OUT_OF_MEMORY = ("NODE_OUT_OF_MEMORY", "running low on memory", "memory pressure")
NODE_GONE = ("node has died", "node died", "NODE_DIED", "unreachable")


def blamed(
    failed: RankFailed, left: Sequence[Cause], judge: Callable[[int, Exception], Cause], hosts: Mapping[int, str]
) -> Cause:
    """The first failure of all.

    Args:
        failed: What Ray gave.
        left: What ranks left behind themselves, by rank.
        judge: Reads an error that a rank raised.
        hosts: Names of the ranks' machines, as far as known.
    """
    own = next((each for each in left if not each.lost), None)
    if own:
        return own
    spoke = {each.rank for each in left}
    seen = [_seen(rank, error, judge, hosts) for rank, error in sorted(failed.errors.items()) if rank not in spoke]
    # A rank that went without a word comes before those that only noticed: the first of these may be a consequence.
    first = next((each for each in seen if not each.lost), None)
    if first:
        return first
    return next(iter([*left, *seen]), Cause("StartFailed", str(failed)))


def was_announced(failed: RankFailed) -> bool:
    """Whether a rank died with a node that had been announced to go."""
    actors = (_actor_error(error) for error in failed.errors.values())
    return any(error.preempted for error in actors if error)


def _seen(rank: int, error: Exception, judge: Callable[[int, Exception], Cause], hosts: Mapping[int, str]) -> Cause:
    actor = _actor_error(error)
    host = hosts.get(rank, "")
    if actor is None and not isinstance(error, OutOfMemoryError):
        return judge(rank, error)
    kind, message = end_of_process(str(actor or error))
    return Cause(kind, message, rank, host)


def _actor_error(error: Exception) -> RayActorError | None:
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, RayActorError) else None


def end_of_process(text: str) -> tuple[str, str]:
    """Reads Ray's long text on how a process ended.

    Returns:
        The kind of a `Cause`, and a sentence about "it", the process.
    """
    if any(sign in text for sign in OUT_OF_MEMORY):
        return "OutOfMemory", "Ray ended its process because the node ran out of memory."
    if any(sign in text for sign in NODE_GONE):
        return "NodeLost", "its node is gone."
    return "Killed", "its process ended without a word: SIGKILL, as when memory runs out, or a crash."


def unwrapped(error: Exception) -> Exception:
    """What the rank raised, without the framework's errors around it; a dead process's error stays as it is."""
    if isinstance(error, _RayError) or hasattr(error, "health_check_failure"):
        inner = getattr(error, "cause", None)
        return unwrapped(inner) if isinstance(inner, Exception) else error
    inner = getattr(error, "_base_exc", None)
    return unwrapped(inner) if isinstance(inner, Exception) else error
