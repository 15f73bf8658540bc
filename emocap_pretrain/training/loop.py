"""Defines `pretrain`, the training function that every rank calls under every launcher.

`pretrain` joins the ranks, takes a number for the attempt, starts the monitor, and opens a session (`session.py`),
which holds everything that the loop uses. `_train` is the loop. `_step` makes one step with the engine (`engine.py`)
and the loss guard (`guard.py`). At logged steps, `_exchange` combines the measurements of all ranks
(`health/monitor.py`). When the last step is done, `conclusion.py` evaluates the run and writes its report. The initial
weights and every n-th checkpoint are evaluated too if the settings ask for it (`interim_evaluation.py`), and the run
ends early if their scores do not improve any more.

In an ordinary step, only the loss and DeepSpeed call collectives. Further collectives are called in steps that are
logged or saved, and in steps after which the ranks ask one another whether training must stop.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from emocap_shards.cursor import Cursor
from emocap_shards.store import open_store

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.state import Progress, state_of
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.quarantine import QUARANTINE_FILE
from emocap_pretrain.errors import TrainingError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.health.monitor import Monitor
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.join import joined
from emocap_pretrain.ranks.runtime import Runtime
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.scored_steps import EarlyEnd
from emocap_pretrain.tracking.hosts import JobHostMetrics
from emocap_pretrain.tracking.pages import CHECKPOINT_LOSS
from emocap_pretrain.training.conclusion import conclude, conclude_again, evaluate_again, is_done, prepare_tasks, reopen
from emocap_pretrain.training.engine import Metrics, Timed
from emocap_pretrain.training.interim_evaluation import early_end_at, evaluate_step, results_before_training
from emocap_pretrain.training.session import Session, open_session

log = logging.getLogger(__name__)

# Seconds between two polls whether training must stop. Launchers announce the end of a job only seconds before it. A
# poll is a collective that waits for the device, so it is not made at every step.
POLL_S = 1.0


def pretrain(config: Config, runtime: Runtime) -> None:
    """Trains the run at `config.url` from its newest checkpoint to its last step, evaluates it, and writes its report.

    Every rank of the job calls this function. A finished run is not trained again; if its evaluation settings have
    changed, it is evaluated again. With `evaluation.stop_after` a run may be finished before its last step. When the
    runtime or a user asks to stop, a checkpoint is committed and the function returns. A later attempt resumes from
    that checkpoint, on any number of ranks. With the same number of ranks and the same stage of ZeRO, its weights are
    identical, to the bit, to those of a run that was never interrupted.

    Example:
        pretrain(load(Path("cfg.yaml"), []), EnvRuntime.from_environment("cpu"))  # A job of one rank.

    Args:
        config: The settings of the run, equal on all ranks.
        runtime: Says which rank of the job this process is and which device it uses, and exchanges messages with the
            launcher.

    Raises:
        ConfigError: On all ranks, if the run cannot start with these settings.
        CheckpointError: On all ranks, if no checkpoint can be used to resume, or a checkpoint cannot be saved.
        TrackingError: If MLflow refuses a new run, or does not know the run that is resumed.
        BudgetSpent: If there are more damaged samples than the run may leave out.
        TrainingError: On all ranks, if the run cannot continue, for example because the loss is no longer finite.
        RolledBack: On all ranks, if the loss guard has refused a loss and the run returns to its newest checkpoint.
        LostContact: If another rank has ended or hangs; the message names the rank if it is known.
        Superseded: If a newer attempt of the run has taken over.
    """
    with joined(config.cluster, runtime) as world:
        store = open_store(config.url)
        # Rank 0 may read for minutes, which is longer than the timeout of the training's process group.
        patient = world.patient("opening")
        # A finished run begins no attempt, so its status and its history of attempts stay as they are.
        if patient.run_on_main(lambda: is_done(config, store)):
            if not patient.run_on_main(lambda: conclude_again(config, store)):
                has_local, head = config.objective.local > 0, config.objective.labels
                patient.run_on_main(lambda: tasks.prepare(config.evaluation, has_local=has_local, head=head))
                before_training = results_before_training(config, store, patient, world.device)
                evaluate_again(config, store, before_training, patient, world.device)
            return
        patient.run_on_main(lambda: reopen(config, store))
        # A task that does not fit its data is refused now, before an attempt is counted and hours before it would run.
        patient.run_on_main(lambda: prepare_tasks(config, store))
        # Rank 0 takes the number; every rank then has the same attempt.
        number = world.run_on_main(lambda: Attempt.begin(store, ranks=world.world_size).number)
        attempt = Attempt(store, number)
        monitor = Monitor(
            world,
            attempt,
            name=config.name,
            steps=config.steps,
            timeout_s=config.cluster.timeout_s,
            silence_s=config.cluster.silence_s,
        )
        # The session is closed after the monitor, so that the monitor records a failure first.
        with ExitStack() as opened, monitor:
            session = opened.enter_context(open_session(config, world, attempt, patient))
            stopping = _begin(session, runtime, monitor, patient)
            progress, early_end = _train(session, runtime, monitor, patient, stopping=stopping)
            # If training was stopped, the block ends here, and the monitor records that the attempt was stopped.
            if early_end or session.engine.step >= config.steps:
                session.guard.require_updates(session.engine.step)
                monitor.enter("evaluating", session.engine.step)
                before_training = results_before_training(config, store, patient, world.device)
                conclude(session, progress, before_training, patient, early_end)
                if early_end:
                    monitor.end_early()


def _begin(session: Session, runtime: Runtime, monitor: Monitor, patient: RankGroup) -> bool:
    """Saves and evaluates the initial weights of a new run if its settings ask for it. This is a collective.

    A run without steps has no other checkpoint, so its initial weights are saved and evaluated in any case. If a run
    resumes from a checkpoint that is to be evaluated during training, this function evaluates it, because the attempt
    that saved it may have ended before the evaluation. If a stop is requested, it evaluates nothing, except in a run
    without steps.

    Returns:
        Whether training must stop before the first step.
    """
    config, stopping = session.config, monitor.poll(runtime.should_stop())
    if session.engine.step > 0:
        if stopping or not config.evaluates_checkpoint(session.engine.step):
            return stopping
        _evaluate(session, runtime, monitor, patient)
        return monitor.poll(runtime.should_stop())
    if not (config.steps == 0 or (config.evaluates_before_training and not stopping)):
        return stopping
    monitor.enter("before_training", 0)
    session.save(Cursor(), Progress())
    _report_checkpoints(session.saver.wait(), session, runtime, monitor)
    evaluate_step(session, patient)
    monitor.restart_meter()
    return monitor.poll(runtime.should_stop())


def _evaluate(session: Session, runtime: Runtime, monitor: Monitor, patient: RankGroup) -> float:
    """Evaluates the checkpoint of the current step during training, and returns for how many seconds training waited.

    The evaluation reads the checkpoint from the store, so this function first waits until the checkpoint is committed.
    This is a collective.
    """
    began = time.perf_counter()
    monitor.enter("evaluating", session.engine.step)
    _report_checkpoints(session.saver.wait(), session, runtime, monitor)
    evaluate_step(session, patient)
    monitor.restart_meter()
    return time.perf_counter() - began


def _early_end(session: Session, patient: RankGroup) -> EarlyEnd | None:
    """Returns, on every rank, why the run ends at the current step; None if it continues. This is a collective.

    Rank 0 decides, because the decision depends on results in the store.
    """
    config, step = session.config, session.engine.step
    if config.evaluation.stop_after is None or not config.evaluates_checkpoint(step):
        return None
    return patient.run_on_main(lambda: early_end_at(config, session.store, step))


def _train(
    session: Session, runtime: Runtime, monitor: Monitor, patient: RankGroup, *, stopping: bool
) -> tuple[Progress, EarlyEnd | None]:
    """Trains until the last step, until the evaluated checkpoints do not improve any more, or until a request to stop.

    The last checkpoint is committed when this returns.

    Every rank runs this loop, and its collectives must have the same order on all ranks. So each branch that leads to a
    collective depends only on values that are equal on all ranks: the step, the settings and exchanged values.

    Returns:
        The progress, and why the run ends before its last step; None if it does not.
    """
    config, engine, timed = session.config, session.engine, monitor.timer.measure
    hosts = JobHostMetrics(session.world, Path(config.data.cache))
    # Until the first logged step gives the time of a step, every step is polled.
    began, progress, poll_every = time.perf_counter(), session.before, 1
    # An earlier attempt may have been killed between the last evaluation and the end of the run.
    early_end = None if stopping else _early_end(session, patient)
    monitor.enter("training", engine.step)
    while engine.step < config.steps and not (stopping or early_end):
        with timed("data"):
            batch, cursor = session.next_batch()
        metrics = _step(session, batch, timed)
        # The step is done. `engine.step` is its number from here on, and `cursor` is where the next step begins.
        monitor.count(batch)
        monitor.enter("training", engine.step)
        logs = _due(engine.step, config.tracking.every_steps, config.steps)
        saves = _due(engine.step, config.checkpoint.every_steps, config.steps)
        # A logged or saved step exchanges the wish to stop anyway, so only other steps poll. A stop always saves.
        if not (logs or saves) and engine.step % poll_every == 0:
            stopping = saves = monitor.poll(runtime.should_stop())
        # A checkpoint stores the metrics of its step, so a step that is only saved exchanges them too.
        if logs or saves:
            row, stopping = _exchange(session, monitor, hosts, metrics, should_stop=stopping or runtime.should_stop())
            saves = saves or stopping
            # `time/step_s` was computed from the numbers of all ranks, so all ranks poll at the same steps.
            poll_every = max(1, int(POLL_S / row["time/step_s"]))
            progress = Progress(session.before.seconds + time.perf_counter() - began, row)
        if logs and session.world.is_main:
            _report(session, runtime, progress.row)
        if saves:
            with timed("saving"):
                saved = session.save(cursor, progress)
            # Not "training" again: a phase has one place in the order by which the failure detector compares ranks.
            monitor.enter("saved", engine.step)
            if saved and not stopping and config.evaluates_checkpoint(engine.step):
                began += _evaluate(session, runtime, monitor, patient)  # An evaluation is not time of training.
                early_end = _early_end(session, patient)
        # The sweep counts checkpoints of earlier steps as good, because this step was made from their weights.
        if logs:
            _report_checkpoints(session.saver.finished(), session, runtime, monitor)
            session.sweep()
    # The first wait is for the last checkpoint, and the second one for the deletions of the last sweep.
    monitor.enter("saving", engine.step)
    _report_checkpoints(session.saver.wait(), session, runtime, monitor)
    session.sweep(ended=True)
    _report_checkpoints(session.saver.wait(), session, runtime, monitor)
    return progress, early_end


def _step(session: Session, batch: Batch, timed: Timed) -> Metrics:
    """Makes one step: computes the loss, asks the guard for its verdict, and makes or discards the update.

    The guard judges the loss between the forward and the backward pass, so no gradient of a refused loss is computed.
    The graph of the loss is local to this function, so it is freed before the graph of the next step is built.

    Raises:
        RolledBack: If the verdict is to return to the newest checkpoint.
        TrainingError: If the verdict is to stop the run.
    """
    engine, guard = session.engine, session.guard
    forward = engine.forward(batch, timed=timed)
    verdict = guard.judge(engine.step + 1, forward.loss)
    metrics = engine.update(forward, timed=timed) if verdict.applies else engine.discard(forward)
    # The loss was good, but the engine has left the update out, because a gradient was not finite. All ranks know it.
    if metrics.get("overflowed"):
        guard.overflowed(engine.step)
    elif verdict.applies and metrics["skipped"]:
        verdict = guard.update_failed(engine.step) or verdict
    session.enforce(verdict)
    return metrics


def _exchange(
    session: Session, monitor: Monitor, hosts: JobHostMetrics, metrics: Metrics, *, should_stop: bool
) -> tuple[dict[str, float], bool]:
    """Combines the metrics of all ranks in a logged or saved step. This is a collective.

    Returns the metrics, and whether training must stop. It must stop if `should_stop` is set on any rank, or if a user
    has asked for it.

    Raises:
        TrainingError: On all ranks, in the cases that `_numbers` names.
        BudgetSpent: On all ranks, if they have met more damaged samples than the run may leave out.
        StoreError: On rank 0, if the list of damaged samples cannot be stored. The other ranks raise `LostContact`.
        Superseded: On all ranks, if the run's folder was deleted or replaced.
    """
    step, quarantine = session.engine.step, session.quarantine
    # One collective carries the flags and numbers of all ranks. Rare events that a flag announces take further ones.
    exchanged = monitor.exchange(
        _numbers(metrics, step, session),
        should_stop=should_stop,
        has_damage=quarantine.has_pending,
        extra=[float(session.skipped.total()), *hosts.read(step)],
    )
    # `quarantine.exchange` is a collective, so it comes before the question whether this is rank 0.
    if exchanged.has_damage and quarantine.exchange() and session.world.is_main:
        session.tracker.log_text(QUARANTINE_FILE, quarantine.dump().decode())
    skipped, host_values = zip(*((each[0], each[1:]) for each in exchanged.extra), strict=True)
    row = exchanged.metrics | hosts.named(host_values, step, exchanged.metrics["time/step_s"])
    if session.config.data.webdataset:
        row["data_skipped"] = sum(skipped)
    if quarantine.budget:
        row["data_quarantined"] = float(len(quarantine.rows))
    return row, exchanged.stop


def _report_checkpoints(saved: Sequence[Checkpoint], session: Session, runtime: Runtime, monitor: Monitor) -> None:
    """Reports committed checkpoints to the tracker, the monitor and the runtime.

    Every rank calls this. On all ranks but rank 0, the tracker keeps the reports in memory, and the monitor does
    nothing.
    """
    for checkpoint in saved:
        url = f"{session.store.url}/{checkpoint.folder}"
        session.tracker.log_checkpoint(url, checkpoint.step, checkpoint.digest)
        loss = state_of(checkpoint).progress.row.get("loss")
        if loss is not None:
            session.tracker.log_scores({CHECKPOINT_LOSS: loss}, checkpoint.step)
        monitor.update_status(checkpoint=checkpoint.step)
        runtime.committed(url)
    session.tracker.delete_checkpoints(session.saver.swept())


def _report(session: Session, runtime: Runtime, row: Mapping[str, float]) -> None:
    """Sends the metrics of a logged step to the tracker, and reports the progress to the runtime.

    Only rank 0 calls this.
    """
    step = session.engine.step
    session.tracker.log_metrics(row, step)
    loss = f"loss {row['loss']:.3f}" if "loss" in row else "no loss"
    runtime.heartbeat(step, session.config.steps, f"{loss} · {row['samples_per_s']:.0f} samples/s")


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _numbers(metrics: Metrics, step: int, session: Session) -> dict[str, float]:
    """Returns those metrics that are finite, as Python floats. This waits for the device.

    Raises:
        TrainingError: On all ranks, if a value is not finite while `health.nonfinite` is "stop". The value is a metric
            of this step, or the loss or a gradient of a step since the last logged or saved one.
    """
    row = {name: float(value) for name, value in metrics.items()}
    wrong = [f"{name}={value}" for name, value in row.items() if not math.isfinite(value)]
    # `finite` also covers the steps between two logged steps, whose metrics nobody reads.
    if not row.pop("finite", 1.0) and not wrong:
        wrong = ["a loss or a gradient since the last logged step"]
    if wrong and session.config.health.nonfinite == "stop":
        raise TrainingError(
            f"step {step}: {', '.join(wrong)} is not finite. The newest checkpoint is from before this step; "
            "try a smaller optimizer.lr, a longer warm-up, engine.precision=fp32, or health.nonfinite=skip."
        )
    return {name: value for name, value in row.items() if math.isfinite(value)}
