"""The one object through which the training loop is watched: `with monitored(world, attempt, ...) as monitor`."""

import logging
import socket
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from emocap_shards.background import Background
from emocap_shards.errors import StoreError

from emocap_pretrain.data.batch import Batch
from emocap_pretrain.errors import LostContact, Superseded, TrainingError
from emocap_pretrain.health import readings, stacks
from emocap_pretrain.health.beat import DONE, LOST, Beat
from emocap_pretrain.health.contact import ASKING
from emocap_pretrain.health.meter import OWN, Meter
from emocap_pretrain.health.peers import Peers
from emocap_pretrain.health.profiler import Profiler
from emocap_pretrain.health.status import StatusThread
from emocap_pretrain.health.stragglers import Report, Stragglers, slowest
from emocap_pretrain.health.timing import SECTIONS, SectionTimer
from emocap_pretrain.health.watch import Finding
from emocap_pretrain.health.watchdog import LINGER_S
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.join import lost_contact
from emocap_pretrain.run_folder.attempts import ASKED, FINAL, PASSING, TOLD, Attempt
from emocap_pretrain.run_folder.documents import Failure, ProfileRequest, Slowest

UPLOAD_S, FAILURE_S = 60.0, 10.0

log = logging.getLogger(__name__)


class Monitor:
    """Watches the training of one rank. Its constructor is a collective.

    Args:
        world: All ranks of the job.
        attempt: The attempt in whose folder the status and failures are stored.
        name: The name of the run, for `emocap status`.
        steps: The number of steps after which the run is done.
        timeout_s: The longest time that a rank may spend at one position of the program.
        silence_s: A rank whose heartbeat does not change for this long is lost.
    """

    def __init__(
        self, world: RankGroup, attempt: Attempt, *, name: str, steps: int, timeout_s: float, silence_s: float
    ) -> None:
        self._world, self._attempt, self._steps = world, attempt, steps
        self.beat = Beat()
        self.timer = SectionTimer(world.device, self.beat.mark)
        self.host = socket.gethostname()
        self._meter = Meter(world.device)
        self._stragglers = Stragglers()
        self._hung = False
        self._profiler = Profiler(attempt.store, rank=world.rank, world=world.world_size)
        self._peers = Peers.meet(world, self.beat, self.host, self._last_word, timeout_s=timeout_s, silence_s=silence_s)
        hosts = tuple(sorted(set(self._peers.hosts)))
        facts = {"name": name, "steps": steps, "ranks": world.world_size, "hosts": hosts}
        self._status = StatusThread(attempt, self.beat, **facts) if world.is_main else None
        self._why_stopped = TOLD

    def enter(self, phase: str, step: int) -> None:
        """Records that a phase begins after `step` steps: "training", "saving" or "evaluating"."""
        self.beat.enter(phase, step)
        self._profiler.at(step)
        self.timer.record = self._profiler.active

    def count(self, batch: Batch) -> None:
        """Counts a batch that this rank has trained on."""
        self._meter.count(batch)

    def gather_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns these metrics with those of speed, memory and stragglers over all ranks. This is a collective."""
        values = self._meter.read() | self.timer.read()
        names: tuple[str, ...] = (*OWN, *SECTIONS)
        table = self._world.gather_numbers([values[name] for name in names])
        ranks: list[dict[str, float]] = [dict(zip(names, row, strict=True)) for row in table]
        report = slowest(ranks, self._peers.hosts) if len(ranks) > 1 else None
        row = {**metrics, **readings.metrics(ranks, report)}
        if self._world.is_main:
            self._show(row, report)
        return row

    def poll_requests(self, should_stop: bool) -> bool:
        """Returns whether training must stop: for a runtime, or for a user's request. This is a collective.

        It also starts the profiler if a user has asked for a profile.

        Args:
            should_stop: Whether this rank's runtime asks to stop.

        Raises:
            Superseded: On all ranks, if the run's folder was deleted.
        """
        asked = self._status.asked() if self._status else None
        stop = should_stop or bool(asked and asked.stop)
        if asked and asked.stop:
            self._why_stopped = ASKED
        gone = self._status.gone if self._status else ""
        stop_all, profile, lost = self._world.maximum([int(stop), int(bool(asked and asked.profile)), int(bool(gone))])
        if lost:
            raise Superseded(gone or f"the folder of the run at {self._attempt.store.url} was deleted or replaced.")
        if profile:
            request: ProfileRequest = self._world.broadcast_from_main(asked.profile if asked else None)
            self._profiler.begin(request, self.beat.step)
            self.timer.record = self._profiler.active
        return bool(stop_all)

    def update_status(self, **facts: Any) -> None:
        """Replaces fields of the run's status, such as the newest checkpoint's step; on other ranks it does nothing."""
        if self._status:
            self._status.tell(**facts)

    def _show(self, row: Mapping[str, float], report: Report | None) -> None:
        left = self._steps - self.beat.step
        shown = {name: row[name] for name in ("loss", "samples_per_s") if name in row}
        self.update_status(
            **shown, eta_s=round(left * row["time/step_s"]), slowest=Slowest(**asdict(report)) if report else None
        )
        warning = self._stragglers.look(report, row["time/step_s"]) if report else None
        if warning:
            log.warning(warning)

    def _last_word(self, finding: Finding) -> None:
        """Before the watchdog ends this process."""
        rank = self._world.rank
        if rank in finding.ranks:
            self._fail("Hang", f"{finding.text}; here: {stacks.of_thread(self.beat.thread)}", lost=False)
        elif rank < ASKING:
            self._fail(LostContact.__name__, finding.text, lost=True)
        if self._status:
            self._status.close("failed", finding.text)

    def _fail(self, kind: str, message: str, *, lost: bool, final: bool = False, passing: bool = False) -> None:
        place = (self._world.rank, self.host, self.beat.step)
        self._attempt.fail(Failure(*place, kind, message, final=final, lost=lost, passing=passing))

    def done(self) -> None:
        """The block has ended without an error."""
        self._profiler.close(UPLOAD_S)
        done = self.beat.step >= self._steps
        self.beat.end(DONE)
        if self._status:
            self._status.close("done" if done else "stopped", "" if done else self._reason())
        self._peers.close()

    def _reason(self) -> str:
        """Why the attempt was stopped, and whether there is a state to resume from."""
        saved = "the state is saved" if self.beat.step else "before the first step, so nothing is saved"
        return f"{self._why_stopped}; {saved}"

    def failed(self, error: BaseException) -> None:
        """The block has ended with this error: leave word of it everywhere, within seconds."""
        kind, message = type(error).__name__, str(error) or type(error).__name__
        lost = isinstance(error, LostContact)
        if lost and self._hung:  # The others wait for this one.
            kind, lost = "Hang", False
        self.beat.end(LOST if lost else f"{kind}: {message[:300]}")
        self._peers.hurry()
        # These come on all ranks at once; a thousand need not all say so.
        silent = isinstance(error, TrainingError) and not self._hung and self._world.rank >= ASKING
        nature = {"final": isinstance(error, FINAL), "passing": isinstance(error, PASSING)}
        try:
            if not silent:
                word = Background("emocap-failure")
                word.submit(lambda: self._fail(kind, message, lost=lost, **nature)).result(FAILURE_S)
        except (TimeoutError, StoreError) as late:
            log.warning("the failure could not be written down: %s", late or "the run's store does not answer")
        if self._status:
            self._status.close("failed", message)
        self._peers.close(LINGER_S if isinstance(error, LostContact) else 0.0)

    def explained(self, error: RuntimeError) -> LostContact:
        """The loss of another rank with its name, if that shows within seconds."""
        found = self._peers.who_is_gone(timed_out="imed out" in str(error))
        what = found.text if found else "another rank has ended or hangs, see its own message"
        self._hung = found is not None and self._world.rank in found.ranks
        if self._hung:
            what = f"{what}; here: {stacks.innermost(traceback.extract_tb(error.__traceback__))}"
        return LostContact(f"{what}; the same command goes on from the newest checkpoint.")


@contextmanager
def monitored(
    world: RankGroup, attempt: Attempt, *, name: str, steps: int, timeout_s: float, silence_s: float
) -> Generator[Monitor]:
    """Watches the block on all ranks, with the arguments of `Monitor`; entering it is a collective.

    Raises:
        LostContact: If a collective in the block failed because another rank is gone or hangs; it says which.
    """
    monitor = Monitor(world, attempt, name=name, steps=steps, timeout_s=timeout_s, silence_s=silence_s)
    try:
        yield monitor
    except RuntimeError as error:
        if not lost_contact(error):
            monitor.failed(error)
            raise
        explained = monitor.explained(error)
        monitor.failed(explained)
        raise explained from error
    except BaseException as error:
        monitor.failed(error)
        raise
    else:
        monitor.done()
