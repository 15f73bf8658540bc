"""How a run stands, for whoever starts its ranks again: read from its folder, so it works under every launcher."""

from collections.abc import Sequence
from dataclasses import replace

from emocap_cluster.restarts import Cause
from emocap_shards.errors import BudgetSpent, StoreError
from emocap_shards.store import Store

from emocap_pretrain import starts
from emocap_pretrain.checkpoint.layout import step_folders
from emocap_pretrain.errors import ConfigError, DataError, LostContact, Superseded, TrackingError
from emocap_pretrain.run_folder import RunFolder
from emocap_pretrain.starts import Failure

FINAL = (ConfigError, DataError, BudgetSpent, Superseded)
PASSING = (StoreError, TrackingError, OSError)
CUT = 300  # characters of a message that a person is shown


class RunRecord:
    """The run of `steps` steps at the root of `store`."""

    def __init__(self, store: Store, steps: int) -> None:
        self._store = store
        self._steps = steps
        self._known = starts.newest(store)

    def done(self) -> bool:
        return RunFolder(self._store).report(self._steps) is not None

    def progress(self) -> int:
        """Step of the newest committed checkpoint; 0 without one."""
        return next((each.step for each in step_folders(self._store) if each.manifest_bytes is not None), 0)

    def failures(self) -> Sequence[Cause]:
        """What ranks of the newest start left behind, by rank; nothing if that start has been asked about before."""
        newest = starts.newest(self._store)
        if newest <= self._known:
            return []
        self._known = newest
        return [_cause(failure) for failure in starts.failures(self._store, newest)]

    def judge(self, rank: int, error: Exception) -> Cause:
        """An error that a rank raised."""
        return Cause(
            kind=type(error).__name__,
            message=_short(str(error)),
            rank=rank,
            final=isinstance(error, FINAL),
            lost=isinstance(error, LostContact) or "/gloo/" in str(error),
            passing=isinstance(error, PASSING),
        )


def _cause(failure: Failure) -> Cause:
    cause = Cause(failure.kind, _short(failure.message), failure.rank, failure.host, failure.step)
    final = failure.final or failure.kind in {each.__name__ for each in FINAL}
    return replace(cause, final=final, lost=failure.lost, passing=failure.kind in {each.__name__ for each in PASSING})


def _short(message: str) -> str:
    line = message.strip().partition("\n")[0]
    return line if len(line) <= CUT else f"{line[: CUT - 3]}..."
