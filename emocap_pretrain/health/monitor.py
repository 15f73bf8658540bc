"""The one object through which the training loop is watched: `with monitored(config, world, attempt) as monitor`."""

import logging
import socket
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from emocap_shards.background import Background
from emocap_shards.errors import StoreError

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.errors import LostContact, Superseded, TrainingError
from emocap_pretrain.health import readings, stacks
from emocap_pretrain.health.beat import DONE, LOST, Beat
from emocap_pretrain.health.contact import ASKING
from emocap_pretrain.health.gather import gathered
from emocap_pretrain.health.meter import OWN, Meter
from emocap_pretrain.health.peers import Peers
from emocap_pretrain.health.profiler import Profiler
from emocap_pretrain.health.sections import SECTIONS, Sections
from emocap_pretrain.health.status import StatusThread
from emocap_pretrain.health.stragglers import Report, Stragglers, slowest
from emocap_pretrain.health.watch import Finding
from emocap_pretrain.health.watchdog import LINGER_S
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.join import lost_contact
from emocap_pretrain.run_folder.attempts import ASKED, FINAL, PASSING, TOLD, Attempt
from emocap_pretrain.run_folder.documents import Failure, ProfileRequest, Slowest

UPLOAD_S, FAILURE_S = 60.0, 10.0

log = logging.getLogger(__name__)


class Monitor:
    """Of one rank. `sections` times the parts of a step; the loop says where it stands with `at`."""

    def __init__(self, config: Config, world: RankGroup, attempt: Attempt) -> None:
        self._config, self._world, self._attempt = config, world, attempt
        self.beat = Beat()
        self.sections = Sections(world.device, self.beat.mark)
        self.host = socket.gethostname()
        self._meter = Meter(world.device)
        self._stragglers = Stragglers()
        self._hung = False
        self._profiler = Profiler(attempt.store, rank=world.rank, world=world.world_size)
        self._peers = Peers.meet(config, world, self.beat, self.host, self._last_word)
        hosts = tuple(sorted(set(self._peers.hosts)))
        facts = {"name": config.name, "steps": config.steps, "ranks": world.world_size, "hosts": hosts}
        self._status = StatusThread(attempt, self.beat, **facts) if world.is_main else None
        self._why_stopped = TOLD

    def at(self, step: int, phase: str = "training") -> None:
        """`step` steps are done and `phase` begins: "training", "saving", "evaluating"."""
        self.beat.at(step, phase)
        self._profiler.at(step)
        self.sections.recorded = self._profiler.active

    def count(self, batch: Batch) -> None:
        """This rank trained on a batch."""
        self._meter.count(batch)

    def row(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """These metrics with those of speed, memory and stragglers over all ranks; a collective."""
        values = self._meter.read() | self.sections.read()
        names: tuple[str, ...] = (*OWN, *SECTIONS)
        table = gathered(self._world, [values[name] for name in names])
        ranks: list[dict[str, float]] = [dict(zip(names, row, strict=True)) for row in table]
        report = slowest(ranks, self._peers.hosts) if len(ranks) > 1 else None
        row = {**metrics, **readings.metrics(ranks, report)}
        if self._world.is_main:
            self._show(row, report)
        return row

    def asked_to_stop(self, told: bool) -> bool:
        """Whether some rank was told to stop, or a person asks for it. Begins a profile, if asked. A collective.

        Args:
            told: What this rank's runtime says.

        Raises:
            Superseded: On all ranks, if the run's folder was deleted.
        """
        asked = self._status.asked() if self._status else None
        stop = told or bool(asked and asked.stop)
        if asked and asked.stop:
            self._why_stopped = ASKED
        gone = self._status.gone if self._status else ""
        stop_all, profile, lost = self._world.maximum([int(stop), int(bool(asked and asked.profile)), int(bool(gone))])
        if lost:
            raise Superseded(gone or f"the folder of the run at {self._attempt.store.url} was deleted or replaced.")
        if profile:
            request: ProfileRequest = self._world.broadcast_from_main(asked.profile if asked else None)
            self._profiler.begin(request, self.beat.step)
            self.sections.recorded = self._profiler.active
        return bool(stop_all)

    def tell(self, **facts: Any) -> None:
        """Further facts for `emocap status`, such as the newest checkpoint's step; kept by rank 0."""
        if self._status:
            self._status.tell(**facts)

    def _show(self, row: Mapping[str, float], report: Report | None) -> None:
        left = self._config.steps - self.beat.step
        shown = {name: row[name] for name in ("loss", "samples_per_s") if name in row}
        self.tell(
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
        done = self.beat.step >= self._config.steps
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
def monitored(config: Config, world: RankGroup, attempt: Attempt) -> Generator[Monitor]:
    """Watch over the block on all ranks; a collective at its begin.

    Raises:
        LostContact: If a collective in the block failed because another rank is gone or hangs; it says which.
    """
    monitor = Monitor(config, world, attempt)
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
