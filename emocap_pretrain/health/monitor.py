"""Watches the training loop of one rank: `with Monitor(world, attempt, ...) as monitor`.

The loop calls the monitor, and the monitor calls the other modules of `health`:

- `position` holds the step and the phase of the rank, and `timing` measures the sections of a step.
- `metrics` and `stragglers` compute the metrics of the job and find the slowest rank, at logged steps.
- `status` writes the status into the run's folder and reads the requests of users, on rank 0.
- `profiler` records traces on request.
- `liveness` finds ranks that are lost or hang.

Each rank has a thread that uploads traces. If a job has several ranks, each rank has two further threads: one exchanges
heartbeats, and one is the watchdog. Rank 0 also has a thread that writes the status. The training thread calls the
methods of the monitor. Only `_record_diagnosis` and `_store_failure` run in other threads, because the run's store may
be unreachable.
"""

import logging
import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emocap_shards.background import Background
from emocap_shards.errors import StoreError

from emocap_pretrain.data.batch import Batch
from emocap_pretrain.errors import LostContact, Superseded, TrainingError
from emocap_pretrain.health.liveness import Diagnosis, stacks, watch_ranks
from emocap_pretrain.health.liveness.watchdog import REPORTING_RANKS
from emocap_pretrain.health.metrics import RANK_METRICS, RankMeter, job_metrics
from emocap_pretrain.health.position import DONE, LOST, TrainingPosition
from emocap_pretrain.health.profiler import Profiler
from emocap_pretrain.health.status import StatusThread
from emocap_pretrain.health.stragglers import StragglerWarnings, slowest_rank
from emocap_pretrain.health.timing import SECTIONS, SectionTimer
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.join import lost_contact
from emocap_pretrain.run_folder.attempts import FINAL, PASSING, STOP_REQUESTED, STOP_SIGNALLED, Attempt
from emocap_pretrain.run_folder.documents import Failure, ProfileRequest, Straggler
from emocap_pretrain.run_folder.requests import Requests

# How long the end of the run waits for traces of the profiler, and the end after an error for the record of the error.
UPLOAD_S, STORE_FAILURE_S = 60.0, 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """Holds what the ranks have exchanged after a step whose metrics are tracked or saved, equal on all ranks.

    Attributes:
        stop: Whether training stops after this step.
        has_damage: Whether some rank has met damaged samples that it has not reported to the other ranks.
        metrics: The metrics of the step, and the speed, the memory and the slowest rank of the job.
        extra: The list of values that each rank has passed to `Monitor.exchange` as `extra`, in the order of the ranks.
    """

    stop: bool
    has_damage: bool
    metrics: dict[str, float]
    extra: list[list[float]]


class Monitor:
    """Watches the training of one rank within a `with` block, and records how the block ends.

    The constructor is a collective. If another rank is lost or hangs, the block ends in one of two ways. If a
    collective in the block fails because of it, the block raises `LostContact`, whose message names the rank if it is
    known. If no collective fails, so that this rank would wait without end, the watchdog ends the process with exit
    code 70; then no code after the block runs.

    Attributes:
        position: The position of the training thread.
        timer: Measures the sections of a step.
        host: The name of this rank's host.

    Args:
        world: All ranks of the job.
        attempt: The attempt in whose folder the status and failures are stored.
        name: The name of the run, for `emocap status`.
        steps: The number of steps after which the run is done.
        timeout_s: The longest time that a rank may spend in one phase of a step. The phases in `UNBOUNDED_PHASES`, such
            as "saving", may take any time, and so may the first step of an attempt, except its phase "data".
        silence_s: A rank whose heartbeat does not change for this long is lost.
    """

    def __init__(
        self, world: RankGroup, attempt: Attempt, *, name: str, steps: int, timeout_s: float, silence_s: float
    ) -> None:
        self._world, self._attempt, self._steps = world, attempt, steps
        self.position = TrainingPosition()
        self.timer = SectionTimer(world.device, self.position.enter_section)
        self.host = socket.gethostname()
        self._meter = RankMeter(world.device)
        self._straggler_warnings = StragglerWarnings()
        self._profiler = Profiler(attempt.store, rank=world.rank, world_size=world.world_size)
        self._hosts = world.gather(self.host)
        # A rank that is alone has no other ranks to watch, and no store of the job.
        self._watchdog = None
        if world.process_group is not None:
            self._watchdog = watch_ranks(
                world,
                self.position,
                self._hosts,
                timeout_s=timeout_s,
                silence_s=silence_s,
                before_exit=self._record_diagnosis,
            )
        fields = {"name": name, "steps": steps, "ranks": world.world_size, "hosts": tuple(sorted(set(self._hosts)))}
        self._status = StatusThread(attempt, self.position, **fields) if world.is_main else None
        self._stop_reason = STOP_SIGNALLED
        self._ended_early = False  # Whether the run is done although it has not made all steps.
        self._hangs = False  # Whether the diagnosis says that the other ranks wait for this rank.

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        # The error of a failed collective does not say which rank is the cause. The heartbeats do, so they come first.
        if error is None:
            self._finish()
        elif isinstance(error, RuntimeError) and lost_contact(error):
            explained = self._explain_loss(error)
            self._fail(explained)
            raise explained from error
        else:
            self._fail(error)

    def enter(self, phase: str, step: int) -> None:
        """Records that `phase` begins after `step` steps.

        The phase is "before_training", "training", "saving", "saved" or "evaluating".

        It also stops a recording of the profiler if the last step to be recorded is done. The phases within a step,
        such as "forward", are not recorded here but by `timer`.
        """
        self.position.enter(phase, step)
        self._profiler.stop_after(step)
        self.timer.record = self._profiler.recording

    def count(self, batch: Batch) -> None:
        """Counts a batch that this rank has trained on."""
        self._meter.count(batch)

    def restart_meter(self) -> None:
        """Sets the time for the rates of the next logged step back to 0, after an evaluation that is no training."""
        self._meter = RankMeter(self._world.device)

    def exchange(
        self,
        metrics: Mapping[str, float],
        *,
        should_stop: bool = False,
        has_damage: bool = False,
        extra: Sequence[float] = (),
    ) -> LoggedStep:
        """Exchanges flags and measurements between the ranks at a logged or saved step. This is one collective.

        If a user has requested a profile, a second collective broadcasts the request, and the profiler starts.

        Args:
            metrics: The metrics of the step, equal on all ranks.
            should_stop: Whether this rank's `Runtime` (its connection to the launcher) asks to stop.
            has_damage: Whether this rank has met damaged samples that it has not reported to the other ranks.
            extra: Further values of this rank, such as the metrics of its host. All ranks must give equally many.

        Returns:
            The exchanged values. The times of the sections are among them, so this method waits for the device.

        Raises:
            Superseded: On all ranks, if the run's folder was deleted or replaced.
        """
        values = self._meter.read() | self.timer.read()
        names = (*RANK_METRICS, *SECTIONS)
        requests = self._take_requests()
        # Each rank sends one row: the flags, the values in the order of `names`, and `extra`. Numbers have no names, so
        # their order must be the same on all ranks.
        flags = [*self._flags(requests, should_stop), has_damage]
        table = self._world.gather_numbers([*flags, *(values[name] for name in names), *extra])
        stop, profile, superseded, damage = (any(column) for column in list(zip(*table, strict=True))[: len(flags)])
        self._act_on(requests, profile=profile, superseded=superseded)
        ranks = [dict(zip(names, row[len(flags) :], strict=False)) for row in table]
        straggler = slowest_rank(ranks, self._hosts) if len(ranks) > 1 else None
        row = {**metrics, **job_metrics(ranks, straggler)}
        if self._world.is_main:
            self._report(row, straggler)
        return LoggedStep(stop, damage, row, [each[len(flags) + len(names) :] for each in table])

    def poll(self, should_stop: bool) -> bool:
        """Returns whether training must stop, because the `Runtime` of some rank or a user has asked for it.

        The training loop calls this method before the first step, and after some of the steps that are neither logged
        nor saved. The method is a collective. If a user has requested a profile, a second collective broadcasts the
        request, as in `exchange`.

        Args:
            should_stop: Whether this rank's `Runtime` (its connection to the launcher) asks to stop.

        Raises:
            Superseded: On all ranks, if the run's folder was deleted or replaced.
        """
        requests = self._take_requests()
        flags = self._flags(requests, should_stop)
        stop, profile, superseded = map(bool, self._world.maximum([int(flag) for flag in flags]))
        self._act_on(requests, profile=profile, superseded=superseded)
        return stop

    def _take_requests(self) -> Requests | None:
        requests = self._status.take_requests() if self._status else None
        if requests and requests.stop:
            self._stop_reason = STOP_REQUESTED
        return requests

    def _flags(self, requests: Requests | None, should_stop: bool) -> tuple[bool, bool, bool]:
        """Returns three flags of this rank.

        They say whether the rank has a reason to stop, whether it has read a request for a profile, and whether it has
        found that this attempt must not write any more.
        """
        stop, profile = (requests.stop, bool(requests.profile)) if requests else (False, False)
        return should_stop or stop, profile, bool(self._status and self._status.superseded)

    def _act_on(self, requests: Requests | None, *, profile: bool, superseded: bool) -> None:
        """Starts a requested profile, or raises an error if this attempt must not write any more.

        All ranks call this with the same flags, which they have exchanged before.

        Args:
            requests: The requests that rank 0 has read; None on other ranks.
            profile: Whether rank 0 has read a request for a profile.
            superseded: Whether this attempt must not write any more, because the run's folder was deleted or replaced.

        Raises:
            Superseded: If `superseded` is set.
        """
        if superseded:
            url = self._attempt.store.url
            reason = self._status.superseded if self._status else ""
            raise Superseded(reason or f"the folder of the run at {url} was deleted or replaced.")
        # Only rank 0 has read the request. The flag was exchanged, so all ranks take part in this broadcast.
        if profile:
            request: ProfileRequest = self._world.broadcast_from_main(requests.profile if requests else None)
            self._profiler.start(request, self.position.step)
            self.timer.record = self._profiler.recording

    def end_early(self) -> None:
        """Says that the run is done although it has not made all steps. Otherwise it counts as stopped."""
        self._ended_early = True

    def update_status(self, **fields: Any) -> None:
        """Replaces fields of the run's status, such as the step of the newest checkpoint. Only rank 0 has a status."""
        if self._status:
            self._status.update(**fields)

    def _finish(self) -> None:
        """Records that training has ended without an error, and ends all threads."""
        # The watchdog is closed last: until then a rank that is lost while others finish is still noticed.
        self._profiler.close(UPLOAD_S)
        done = self.position.step >= self._steps or self._ended_early
        self.position.end(DONE)
        if self._status:
            saved = "the state is saved" if self.position.step else "before the first step, so no training is lost"
            self._status.close("done" if done else "stopped", "" if done else f"{self._stop_reason}; {saved}")
        if self._watchdog:
            self._watchdog.close()

    def _fail(self, error: BaseException) -> None:
        """Sends an error to the other ranks, stores it in the run's folder, and ends threads, within seconds.

        The threads that end are those of the status, the heartbeats and the watchdog. All ranks raise the same
        `TrainingError` at the same time, so only the ranks below `REPORTING_RANKS` store it. A rank for which the
        others wait always stores its error.
        """
        # First the other ranks learn of the error from a heartbeat, because they wait. The record in the store and the
        # status, which may take seconds, come after it.
        kind, message = type(error).__name__, str(error) or type(error).__name__
        lost = isinstance(error, LostContact)
        if lost and self._hangs:
            kind, lost = "Hang", False
        self.position.end(LOST if lost else f"{kind}: {message[:300]}")
        if self._watchdog:
            self._watchdog.send_now()
        # All ranks raise the same `TrainingError` at once, so only the first few ranks store it.
        repeated = isinstance(error, TrainingError) and not self._hangs and self._world.rank >= REPORTING_RANKS
        nature = {"final": isinstance(error, FINAL), "passing": isinstance(error, PASSING)}
        # A thread makes the call, because the store may be unreachable, and it repeats a failing request for minutes.
        try:
            if not repeated:
                thread = Background("emocap-failure")
                stored = thread.submit(lambda: self._store_failure(kind, message, lost=lost, **nature))
                stored.result(STORE_FAILURE_S)
        except (TimeoutError, StoreError) as late:
            log.warning("the failure could not be stored: %s", late or "the run's store does not answer")
        if self._status:
            self._status.close("failed", message)
        if self._watchdog:
            self._watchdog.close(keep_store=isinstance(error, LostContact))

    def _explain_loss(self, error: RuntimeError) -> LostContact:
        """Returns the error to raise after a collective has failed with `error`.

        The returned error names the rank that is lost or hangs, if that rank can be found within seconds.
        """
        timed_out = "imed out" in str(error)  # It begins with "T" or "t".
        diagnosis = self._watchdog.explain_loss(timed_out=timed_out) if self._watchdog else None
        reason = diagnosis.message if diagnosis else "another rank has ended or hangs, see its own message"
        self._hangs = diagnosis is not None and self._world.rank in diagnosis.ranks
        if self._hangs:
            reason = f"{reason}; here: {stacks.in_one_line(traceback.extract_tb(error.__traceback__))}"
        return LostContact(f"{reason}; the same command resumes from the newest checkpoint.")

    def _report(self, row: Mapping[str, float], straggler: Straggler | None) -> None:
        """Writes the newest metrics into the status, and warns of a straggler. Only rank 0 calls this."""
        shown = {name: row[name] for name in ("loss", "samples_per_s") if name in row}
        steps_left = self._steps - self.position.step
        self.update_status(**shown, eta_s=round(steps_left * row["time/step_s"]), slowest=straggler)
        warning = self._straggler_warnings.check(straggler, row["time/step_s"]) if straggler else None
        if warning:
            log.warning(warning)

    def _record_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Stores the diagnosis in the run's folder. The watchdog calls this before it ends the process."""
        # The rank that is the reason stores its own stack. Of the others, the first few store that they lost it.
        rank = self._world.rank
        if rank in diagnosis.ranks:
            message = f"{diagnosis.message}; here: {stacks.of_thread(self.position.thread)}"
            self._store_failure("Hang", message, lost=False)
        elif rank < REPORTING_RANKS:
            self._store_failure(LostContact.__name__, diagnosis.message, lost=True)
        if self._status:
            self._status.close("failed", diagnosis.message)

    def _store_failure(
        self, kind: str, message: str, *, lost: bool, final: bool = False, passing: bool = False
    ) -> None:
        place = (self._world.rank, self.host, self.position.step)
        self._attempt.record_failure(Failure(*place, kind, message, final=final, lost=lost, passing=passing))
