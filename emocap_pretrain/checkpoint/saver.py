"""Saves checkpoints in the background while training continues.

Three threads of a rank take part. The training thread takes a snapshot, calls `save`, and calls `finished` at logged
steps (those whose metrics are tracked). The saver's thread writes and uploads the snapshot, and takes part in the
commit. Its collectives use a separate process group, so they do not mix with the collectives of the training. On rank 0
a third thread deletes old checkpoints, without any collective.
"""

import concurrent.futures
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from emocap_shards.background import Background
from emocap_shards.errors import StoreError
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.commit import commit
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.retention import Retention, retain
from emocap_pretrain.errors import CheckpointError, Superseded
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.attempts import Attempt

NOTABLE_WAIT_S = 1.0  # A longer wait of the training for a checkpoint is logged.
SWEEP_S = 5.0  # Time for a deletion at the end of the run; the next attempt deletes the rest.

log = logging.getLogger(__name__)


class Saver:
    """Saves one checkpoint at a time, in a thread of its own.

    All ranks must construct a saver and call its methods in the same order. Only the constructor and `finished` run
    collectives in the caller's thread. If a save fails in the thread of one rank, every rank raises an error when it
    next takes the result of the save, in `save`, `finished` or a method that waits. The error is `Superseded` if a
    newer attempt owns the run, the error of a collective if a rank died, and otherwise a `CheckpointError` that names
    the rank.

    Args:
        store: The run's store.
        world: All ranks. The threads use a process group of their own.
        run_attempt: This attempt of the run.
        retention: The rule by which `sweep` keeps checkpoints.
        newest: The step that training resumed from; -1 for a new run.
        refused: Save attempts of checkpoints that were found damaged; these checkpoints do not count towards
            `Retention.keep_last`.
    """

    def __init__(
        self,
        store: Store,
        world: RankGroup,
        *,
        run_attempt: Attempt,
        retention: Retention,
        newest: int = -1,
        refused: Collection[str] = (),
    ) -> None:
        self._store, self._world, self._run_attempt = store, world, run_attempt
        self._retention, self._refused = retention, frozenset(refused)
        self.newest = newest  # The step of the last call of `save`, which is the step of the pending save.
        self._group = world.patient("checkpoint")
        self._thread = Background("checkpoint-saver")
        # Deletions have a thread of their own, so that one that hangs in the store does not delay the next checkpoint.
        self._sweeper = Background("checkpoint-sweeper")
        self._sweeps = deque[Future[list[int]]]()
        # Steps whose checkpoints exist and after which this attempt has not swept yet. The attempt that has saved the
        # checkpoint from which this one resumes may have ended before it could delete older ones.
        self._unswept = [newest] if newest >= 0 else list[int]()
        # The training thread alone reads and writes these two. The saver's thread returns its result in the future.
        self._pending: Future[Checkpoint] | None = None
        self._committed: list[Checkpoint] = []
        # The test writes to the store, which may be slow or unreachable, so training does not wait for it.
        if world.is_main:
            self._thread.submit(partial(_warn_without_conditions, store))

    def save(
        self, step: int, state: dict[str, Any], write: Callable[[Path], None], done: Callable[[], None] = lambda: None
    ) -> None:
        """Waits until the previous checkpoint is committed, and then begins to commit this one.

        All ranks must call this method for the same step, because the threads of all ranks then run the collectives of
        `commit`. An error of the previous save is raised here.

        Args:
            step: Number of optimizer steps that have been done.
            state: State of the training loop as JSON values. It is copied during this call, and only the values of rank
                0 are stored.
            write: Writes this rank's files into a folder. It runs in the thread of the saver, so it must not call
                collectives of the training's process group, and must not read data that later steps change.
            done: Called once, as soon as `write` is no longer needed. It is also called after an error.
        """
        try:
            # As a text, because training changes the state while the thread still needs it.
            frozen = json.dumps(state)
            self.wait_for_previous()
        except BaseException:
            done()
            raise
        self.newest = step
        self._pending = self._thread.submit(partial(self._commit, step, frozen, write, done))

    def wait_for_previous(self) -> None:
        """Waits for the checkpoint in progress, so that its snapshot is freed before the next snapshot is made."""
        pending, began = self._pending, time.perf_counter()
        self._wait_for_pending()
        held_s = time.perf_counter() - began
        if pending and held_s > NOTABLE_WAIT_S and self._world.is_main:
            log.warning(
                "training waited %.1f s for the checkpoint of step %d, which took longer than the steps to the next: "
                "raise checkpoint.every_steps, or find out why the store is slow",
                held_s,
                self.newest,
            )

    def finished(self) -> list[Checkpoint]:
        """Returns the checkpoints that were committed since the last call, without waiting for the one in progress.

        All ranks must call this method. The result is equal on all of them: a checkpoint is returned only after its
        save has ended on every rank.
        """
        # `_pending` is set on all ranks or on none, so all of them call the collective. It tells whether some rank is
        # still busy: a rank whose own part is done must not report the checkpoint earlier than the others.
        if self._pending and not self._world.any_rank(not self._pending.done()):
            self._wait_for_pending()
        return self._take_committed()

    def wait(self, timeout_s: float | None = None) -> list[Checkpoint]:
        """Waits for the checkpoint in progress, then returns the checkpoints that were committed since the last call.

        The method also waits for deletions in progress, for at most `SWEEP_S` seconds. After a timeout the save
        continues in its thread, but its result is lost.

        Raises:
            CheckpointError: If the checkpoint is not committed within `timeout_s` seconds.
        """
        self._wait_for_pending(timeout_s)
        concurrent.futures.wait(list(self._sweeps), SWEEP_S if timeout_s is None else min(timeout_s, SWEEP_S))
        return self._take_committed()

    def sweep(self, proven: int) -> None:
        """Begins to delete the checkpoints that `retention` does not keep. Only rank 0 deletes.

        A call deletes nothing unless one more checkpoint has become known to be good since the previous call (see
        `proven`). It is one that this attempt has saved, or the one from which it has resumed.

        Args:
            proven: Checkpoints of steps before this one are known to be good, because training has continued from their
                weights. Other checkpoints do not count towards `keep_last`, because their weights may be broken.
        """
        # A sweep lists the whole folder, so there is one only after a new checkpoint has begun to count.
        due = [step for step in self._unswept if step < proven]
        self._unswept = [step for step in self._unswept if step >= proven]
        if due and self._world.is_main:
            self._sweeps.append(self._sweeper.submit(partial(self._sweep, proven)))

    def swept(self) -> list[int]:
        """Returns the steps whose checkpoints were deleted since the last call; empty on all ranks but rank 0."""
        steps: list[int] = []
        # The sweeps have one thread, so they end in their order.
        while self._sweeps and self._sweeps[0].done():
            sweep = self._sweeps.popleft()
            steps += [] if sweep.cancelled() else sweep.result()
        return steps

    def close(self) -> None:
        """Cancels all work that has not begun. A save in progress continues, and this method does not wait for it.

        The threads are daemon threads: when the process ends, a save in progress ends too. The previous checkpoint
        remains intact.
        """
        self._thread.close()
        self._sweeper.close()

    def _take_committed(self) -> list[Checkpoint]:
        committed, self._committed = self._committed, []
        return committed

    def _wait_for_pending(self, timeout_s: float | None = None) -> None:
        """Waits for the save in progress, and raises its error once."""
        pending = self._pending
        if pending is None:
            return
        try:
            self._committed.append(pending.result(timeout_s))
            self._unswept.append(self.newest)
        except TimeoutError as error:
            # The save itself may have raised a TimeoutError. Then the future is done, and its error is the right one.
            if pending.done():
                raise
            raise CheckpointError(
                f"the checkpoint of step {self.newest} is not committed after {timeout_s:g} s more: the store is slow "
                "or unreachable; the newest checkpoint before it is intact."
            ) from error
        finally:
            self._pending = None

    def _commit(self, step: int, state: str, write: Callable[[Path], None], done: Callable[[], None]) -> Checkpoint:
        # `done` is called exactly once: after the files are written, or at the end of this block if `write` was not
        # called or raised an error.
        with ExitStack() as stack:
            stack.callback(done)

            def written(folder: Path) -> None:
                write(folder)
                stack.close()  # Frees the snapshot before the upload, which takes far longer.

            return commit(self._store, step, json.loads(state), written, self._group, self._run_attempt)

    def _sweep(self, proven: int) -> list[int]:
        """Deletes old checkpoints and returns their steps. An error of the store is logged, and the run continues.

        Only checkpoints of steps before `proven` count towards `Retention.keep_last`.
        """
        own = self._run_attempt

        # Weights from which no later step was made may be broken although they are finite (decision 21).
        def counts(checkpoint: Checkpoint) -> bool:
            return checkpoint.step < proven and checkpoint.attempt not in self._refused

        try:
            return retain(self._store, self._retention, before=own.number, counts=counts, check=own.check)
        except (StoreError, OSError, CheckpointError, Superseded) as error:
            log.warning("old checkpoints could not be deleted: %s", error)
            return []


def _warn_without_conditions(store: Store) -> None:
    try:
        honours = store.honours_conditions()
    except (StoreError, OSError) as error:
        log.warning("could not find out whether %s supports conditional writes: %s", store.url, error)
        return
    if not honours:
        log.warning(
            "%s ignores conditions (If-None-Match): two attempts of this run that begin at the same moment may take "
            "the same number, and the later manifest of a step replaces the earlier one; end an attempt before you "
            "begin another",
            store.url,
        )
