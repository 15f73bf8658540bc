"""Checkpoints that are written while training goes on."""

import concurrent.futures
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
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

NOTABLE_WAIT_S = 1.0
SWEEP_S = 5.0  # What a sweep has at the end; the next start goes on with it.

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Flight:
    step: int
    future: Future[Checkpoint]


class Saver:
    """Saves one checkpoint at a time in a thread of its own. All ranks make it, and call it, at the same points.

    What goes wrong in the thread of one rank is raised by the next call on all of them: `Superseded` where a newer
    start owns the run, `CheckpointError` that names the rank, or the error of a collective whose other rank is gone.

    Args:
        store: The run's store.
        world: All ranks; the threads meet in a group of their own.
        start: The start of the run that this is; without one nobody is kept from writing.
        retention: What stays after each `sweep`.
        newest: The step that training resumed from; 0 for a new run.
        refused: Attempts whose checkpoints were found damaged; they do not count towards what stays.
    """

    def __init__(
        self,
        store: Store,
        world: RankGroup,
        *,
        start: Attempt | None = None,
        retention: Retention | None = None,
        newest: int = 0,
        refused: Collection[str] = (),
    ) -> None:
        self._store, self._world, self._start = store, world, start
        self._retention, self._refused = retention, frozenset(refused)
        self.newest = newest  # Of the steps that `save` was called for.
        self._aside = world.patient("checkpoint")
        self._thread = Background("checkpoint-saver")
        self._sweeper = Background("checkpoint-sweeper")  # A store that hangs over a deletion holds up no checkpoint.
        self._sweeps = deque[Future[list[int]]]()
        self._unswept: list[int] = []
        self._flight: _Flight | None = None
        self._landed: list[Checkpoint] = []
        if world.is_main:
            self._thread.submit(partial(_warn_without_conditions, store))

    def save(
        self, step: int, state: dict[str, Any], write: Callable[[Path], None], done: Callable[[], None] = lambda: None
    ) -> None:
        """Begin to commit a checkpoint, as soon as the one before it is committed.

        Args:
            step: Optimizer steps done.
            state: JSON values for the loop; rank 0's are kept, as they are now.
            write: Writes this rank's files into a folder, in the thread: no collective of the training's own group, and
                nothing that a later step changes.
            done: Called once, when `write` is not needed any more, whatever came of it.
        """
        frozen = json.dumps(state)
        try:
            self.ready()
        except BaseException:
            done()
            raise
        act = partial(self._act, step, frozen, write, done)
        self.newest = step
        self._flight = _Flight(step, self._thread.submit(act))

    def ready(self) -> None:
        """Wait for the checkpoint under way, so that the memory of its snapshot is free for the next one."""
        flight, began = self._flight, time.perf_counter()
        self._land()
        held_s = time.perf_counter() - began
        if flight and held_s > NOTABLE_WAIT_S and self._world.is_main:
            log.warning(
                "training waited %.1f s for the checkpoint of step %d, which took longer than the steps to the next: "
                "raise checkpoint.every_steps, or find out why the store is slow",
                held_s,
                flight.step,
            )

    def finished(self) -> list[Checkpoint]:
        """What was committed since the last call, equal on all ranks; waits for no upload. A small collective."""
        if self._flight and not self._world.any_rank(not self._flight.future.done()):
            self._land()
        return self._taken()

    def wait(self, timeout_s: float | None = None) -> list[Checkpoint]:
        """As `finished`, after what is under way.

        Raises:
            CheckpointError: Also if that takes longer than `timeout_s`.
        """
        self._land(timeout_s)
        concurrent.futures.wait(list(self._sweeps), SWEEP_S if timeout_s is None else min(timeout_s, SWEEP_S))
        return self._taken()

    def sweep(self, proven: int) -> None:
        """Begin to delete what retention does not keep, where that changed since the last call.

        Args:
            proven: Checkpoints of earlier steps have shown that training continues from their weights. Later ones do
                not count towards `keep_last`: their weights may be broken.
        """
        due = [step for step in self._unswept if step < proven]
        self._unswept = [step for step in self._unswept if step >= proven]
        if due and self._retention and self._world.is_main:
            self._sweeps.append(self._sweeper.submit(partial(self._sweep, self._retention, proven)))

    def swept(self) -> list[int]:
        """Steps whose checkpoints retention has deleted since the last call; rank 0 knows them, the others none."""
        steps: list[int] = []
        while self._sweeps and self._sweeps[0].done():
            sweep = self._sweeps.popleft()
            steps += [] if sweep.cancelled() else sweep.result()
        return steps

    def close(self) -> None:
        """Begin nothing more; what is under way is left to itself."""
        self._thread.close()
        self._sweeper.close()

    def _taken(self) -> list[Checkpoint]:
        landed, self._landed = self._landed, []
        return landed

    def _land(self, timeout_s: float | None = None) -> None:
        """Wait for what is under way; its error is raised once."""
        flight = self._flight
        if flight is None:
            return
        try:
            self._landed.append(flight.future.result(timeout_s))
            self._unswept.append(flight.step)
        except TimeoutError as error:
            if flight.future.done():
                raise
            raise CheckpointError(
                f"the checkpoint of step {flight.step} is not committed after {timeout_s:g} s more: the store is slow "
                "or gone; the newest one before it stands."
            ) from error
        finally:
            self._flight = None

    def _act(self, step: int, state: str, write: Callable[[Path], None], done: Callable[[], None]) -> Checkpoint:
        with ExitStack() as stack:
            stack.callback(done)

            def written(folder: Path) -> None:
                write(folder)
                stack.close()  # Before the upload, which takes far longer.

            return commit(self._store, step, json.loads(state), written, self._aside, self._start)

    def _sweep(self, retention: Retention, proven: int) -> list[int]:
        """Delete old checkpoints; a store that refuses costs room, not the run."""
        number, check = (self._start.number, self._start.check) if self._start else (0, _nobody_else)

        def counts(checkpoint: Checkpoint) -> bool:
            return checkpoint.step < proven and checkpoint.attempt not in self._refused

        try:
            return retain(self._store, retention, before=number, counts=counts, check=check)
        except (StoreError, OSError, CheckpointError, Superseded) as error:
            log.warning("old checkpoints stay: %s", error)
            return []


def _nobody_else() -> None: ...


def _warn_without_conditions(store: Store) -> None:
    try:
        honours = store.honours_conditions()
    except (StoreError, OSError) as error:
        log.warning("whether %s keeps conditions could not be found out: %s", store.url, error)
        return
    if not honours:
        log.warning(
            "%s ignores conditions (If-None-Match): two starts of this run at the same moment may take one number, and "
            "of their checkpoints of one step the later manifest stands; end a start before you begin another",
            store.url,
        )
