"""Reads the state of a run from its folder, for supervisors that start its ranks again under any launcher."""

from collections.abc import Sequence

from emocap_cluster.restarts import Cause
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.layout import step_folders
from emocap_pretrain.errors import LostContact, RolledBack
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.attempts import FINAL, PASSING, STOP_REQUESTED
from emocap_pretrain.run_folder.documents import Failure, Status
from emocap_pretrain.run_folder.folder import RunFolder

CUT = 300  # characters of a message that a person is shown


class RunRecord:
    """The run at the root of `store`; without `steps` as many as its newest attempt was to do."""

    def __init__(self, store: Store, steps: int | None) -> None:
        self._store = store
        self._steps = steps
        self._before = self._known = attempts.newest(store)

    def done(self) -> bool:
        status = self._status()
        steps = self._steps or (status.steps if status else None) or 0
        return RunFolder(self._store).report(steps) is not None

    def progress(self) -> int:
        """Step of the newest committed checkpoint; 0 without one."""
        return next((each.step for each in step_folders(self._store) if each.manifest_bytes is not None), 0)

    def failures(self) -> Sequence[Cause]:
        """Returns the failures that ranks have recorded since the last call, the newest attempt first.

        All of these attempts count: where somebody else started the run meanwhile, the older one was superseded.
        """
        new = [number for number in attempts.numbers(self._store) if number > self._known]
        self._known = max(new, default=self._known)
        return [_cause(failure) for number in reversed(new) for failure in attempts.failures(self._store, number)]

    def cause_of(self, rank: int, error: Exception) -> Cause:
        """An error that a rank raised."""
        return Cause(
            kind=type(error).__name__,
            message=_short(str(error)),
            rank=rank,
            final=isinstance(error, FINAL),
            lost=isinstance(error, LostContact) or "/gloo/" in str(error),
            passing=isinstance(error, PASSING),
            planned=isinstance(error, RolledBack),
        )

    def stopped(self) -> bool:
        """Returns whether the newest attempt saved and ended because of a request."""
        status = self._status()
        return attempts.newest(self._store) > self._before and status is not None and status.how == "stopped"

    def asked_to_stop(self) -> bool:
        """Returns whether a person made the request to the run itself."""
        status = self._status()
        return self.stopped() and status is not None and status.reason.startswith(STOP_REQUESTED)

    def _status(self) -> Status | None:
        """The newest attempt's; one that cannot be read says nothing, as if it had not been written yet."""
        found = attempts.status(self._store, attempts.newest(self._store))
        return found if isinstance(found, Status) else None


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
    return line if len(line) <= CUT else f"{line[: CUT - 3]}..."
