"""Finds the failure of a rank that caused the failures of the others.

If a rank fails, the other ranks lose their connection to it and fail too. So an attempt usually ends with one error for
each rank, and only one of these errors says what happened.
"""

from collections.abc import Callable, Mapping, Sequence

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.exceptions import RayError as _RayError

from emocap_cluster.errors import RankFailed
from emocap_cluster.restarts import Cause

SILENT_ENDS = ("Killed", "NodeLost")  # Kinds of an end without an error of the rank itself.
# Parts of the texts in which Ray says why a process ended. A text without any of them counts as "Killed".
OUT_OF_MEMORY = ("NODE_OUT_OF_MEMORY", "running low on memory", "memory pressure")
NODE_GONE = ("node has died", "node died", "NODE_DIED", "unreachable")


def root_cause(
    failed: RankFailed, reported: Sequence[Cause], cause_of: Callable[[int, Exception], Cause], hosts: Mapping[int, str]
) -> Cause:
    """Returns the failure that probably caused the others.

    Some errors merely say that another rank is lost. Such an error is returned only if all errors are of this kind.
    Within each kind, a cause in `reported` comes before an error in `failed`. If no rank has an error, the result has
    the kind "StartFailed".

    Args:
        failed: The error that contains Ray's error for each rank that failed.
        reported: Causes that the ranks themselves have stored, in the order of `SupervisedRun.failures`.
        cause_of: Converts an error that a rank raised to a `Cause`.
        hosts: Names of the ranks' hosts, as far as they are known.
    """
    # What a rank has stored itself, with its step, says more than what Ray has seen of its end.
    known = {each.rank for each in reported}
    seen = [_seen(rank, error, cause_of, hosts) for rank, error in sorted(failed.errors.items()) if rank not in known]
    # Losing contact to another rank may be a consequence, so any other cause comes first. The sort is stable, so that
    # among equals the stored causes are first, in their order.
    ordered = sorted([*reported, *seen], key=lambda each: each.lost)
    return ordered[0] if ordered else Cause("StartFailed", str(failed))


def error_of(failed: RankFailed | None, cause: Cause | None) -> Exception | None:
    """Returns the error in `failed` to which `cause` belongs; None if there is none.

    The class of the error must have the name `cause.kind`. If several ranks have raised an error of this class, that of
    the rank `cause.rank` is preferred.
    """
    if failed is None or cause is None:
        return None
    for _, error in sorted(failed.errors.items(), key=lambda each: (each[0] != cause.rank, each[0])):
        if type(error).__name__ == cause.kind:
            return error
    return None


def was_announced(failed: RankFailed) -> bool:
    """Returns whether a rank died because its node was removed, and Ray had been informed of the removal before."""
    actors = (_actor_error(error) for error in failed.errors.values())
    return any(error.preempted for error in actors if error)


def _seen(rank: int, error: Exception, cause_of: Callable[[int, Exception], Cause], hosts: Mapping[int, str]) -> Cause:
    actor = _actor_error(error)
    host = hosts.get(rank, "")
    if actor is None and not isinstance(error, OutOfMemoryError):
        return cause_of(rank, error)
    kind, message = end_of_process(str(actor or error))
    return Cause(kind, message, rank, host)


def _actor_error(error: Exception) -> RayActorError | None:
    # Ray Train puts an error of its own around the error that it gets when it polls a rank.
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, RayActorError) else None


def end_of_process(text: str) -> tuple[str, str]:
    """Interprets Ray's long text about the end of a process.

    Returns:
        The kind of a `Cause`, and a short message such as "its node is lost."
    """
    if any(sign in text for sign in OUT_OF_MEMORY):
        return "OutOfMemory", "Ray ended its process because the node ran out of memory."
    if any(sign in text for sign in NODE_GONE):
        return "NodeLost", "its node is lost."
    return "Killed", "its process ended without an error: by SIGKILL, as when memory runs out, or by a crash."


def unwrapped(error: Exception) -> Exception:
    """Returns the error that the rank raised, without Ray's errors around it.

    If the rank's process died, there is no such error, and Ray's error is returned.
    """
    if isinstance(error, _RayError) or hasattr(error, "health_check_failure"):
        inner = getattr(error, "cause", None)
        return unwrapped(inner) if isinstance(inner, Exception) else error
    # Ray Train also puts an error of its own, with the traceback as text, around an error that the function raised.
    inner = getattr(error, "_base_exc", None)
    return unwrapped(inner) if isinstance(inner, Exception) else error
