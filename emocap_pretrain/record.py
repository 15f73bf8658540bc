"""Reads the progress and the failures of a run from its folder, so that a driver can decide about a restart.

`emocap_cluster` does not read the documents of a run itself. Its modules `supervise` (for ranks on Ray) and `relaunch`
(for any other launcher) call the methods of `RunRecord`, which return plain values. `emocap_cluster.restarts` then
decides what follows the end of an attempt (decisions 15 and 17).
"""

from collections.abc import Sequence
from dataclasses import replace

from emocap_cluster.restarts import Cause
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import step_folders
from emocap_pretrain.errors import LostContact, RolledBack
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.attempts import FINAL, PASSING, STOP_REQUESTED
from emocap_pretrain.run_folder.documents import Failure, Status
from emocap_pretrain.run_folder.folder import RunFolder

MAX_CHARACTERS = 300  # A longer message is cut.


class RunRecord:
    """Reads the progress and the failures of a run for its driver, the process that starts the ranks again.

    The object stores which attempts existed when it was created, so the driver creates it before the first attempt of
    the job. Each method reads the store again.

    Args:
        store: The run's folder.
        steps: Number of optimizer steps of the whole run. If it is None, the number is read from the status of the
            newest attempt.
    """

    def __init__(self, store: Store, steps: int | None) -> None:
        self._store = store
        self._steps = steps
        # Attempts up to `_before` belong to earlier jobs. `failures` has returned those up to `_known`.
        self._before = self._known = attempts.newest(store)

    def done(self) -> bool:
        """Returns whether the run has done all steps and written its report."""
        status = self._status()
        steps = self._steps if self._steps is not None else (status.steps if status else None)
        return RunFolder(self._store).report(steps or 0) is not None

    def progress(self) -> int:
        """Returns the step of the newest checkpoint that has a manifest; 0 if there is none.

        The manifest is not read. Whenever this number has grown, a driver sets its count of consecutive failures back
        to 0.
        """
        return next((each.step for each in step_folders(self._store) if each.manifest_bytes is not None), 0)

    def failures(self) -> Sequence[Cause]:
        """Returns the recorded failures of all attempts that have begun since the last call, the newest attempt first.

        There may be several such attempts, because another user may also have started the run. A newer attempt then
        supersedes an older one.
        """
        new = [number for number in attempts.numbers(self._store) if number > self._known]
        self._known = max(new, default=self._known)
        return [_cause(failure) for number in reversed(new) for failure in attempts.failures(self._store, number)]

    def cause_of(self, rank: int, error: Exception) -> Cause:
        """Classifies an error that a rank has raised, so that the driver can decide whether to restart the ranks.

        The driver calls this only for a rank that has stored no failure, for example because the store was unreachable.
        The result then has no host and no step.
        """
        return cause_of(rank, error)

    def stopped(self) -> bool:
        """Returns whether the newest attempt ended without an error because of a user's request or a signal.

        Such an attempt has saved a checkpoint, unless it ended before the first step of the run. An attempt that began
        before this object was created does not count.
        """
        status = self._status()
        return attempts.newest(self._store) > self._before and status is not None and status.how == "stopped"

    def asked_to_stop(self) -> bool:
        """Returns whether a user has stopped the newest attempt with `emocap stop`."""
        status = self._status()
        return self.stopped() and status is not None and status.reason.startswith(STOP_REQUESTED)

    def _status(self) -> Status | None:
        """Returns the status of the newest attempt; None if there is none, or if it cannot be read."""
        found = attempts.status(self._store, attempts.newest(self._store))
        return found if isinstance(found, Status) else None


class ResultRecord:
    """Tells the driver of a job without a run folder what follows an attempt. Such a job returns a value.

    It implements the protocol `SupervisedRun` of `emocap_cluster.supervise`.
    """

    def done(self) -> bool:
        """Returns True: the driver asks only after an attempt in which no rank failed, and so returned the value."""
        return True

    def progress(self) -> int:
        return 0

    def failures(self) -> Sequence[Cause]:
        return ()

    def asked_to_stop(self) -> bool:
        return False

    def cause_of(self, rank: int, error: Exception) -> Cause:
        """Classifies an error as `cause_of` does, but most errors are final.

        Without steps there is no sign by which the driver recognizes that a failure has come again, and a job that
        computes the same again fails in the same way.
        """
        cause = cause_of(rank, error)
        return replace(cause, final=not (cause.lost or cause.passing))


def cause_of(rank: int, error: Exception) -> Cause:
    """Classifies an error that a rank has raised. The result has no host and no step."""
    # This imports torch. A driver on Ray has imported it already; other drivers do not call this function.
    from emocap_pretrain.ranks.join import lost_contact

    return Cause(
        kind=type(error).__name__,
        message=_short(str(error)),
        rank=rank,
        final=isinstance(error, FINAL),
        lost=isinstance(error, LostContact) or lost_contact(error),
        passing=isinstance(error, PASSING),
        planned=isinstance(error, RolledBack),
    )


def _cause(failure: Failure) -> Cause:
    return Cause(
        kind=failure.kind,
        message=_short(failure.message),
        rank=failure.rank,
        host=failure.host,
        step=failure.step,
        final=failure.final,
        lost=failure.lost,
        passing=failure.passing,
        planned=failure.kind == RolledBack.__name__,
    )


def _short(message: str) -> str:
    line = message.strip().partition("\n")[0]
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 3]}..."
