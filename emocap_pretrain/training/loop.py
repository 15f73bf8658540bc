"""The training function: the same one under every launcher."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from emocap_shards.store import open_store
from torch import Tensor

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.state import Progress, state_of
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.quarantine import QUARANTINE_FILE
from emocap_pretrain.errors import TrainingError
from emocap_pretrain.health.monitor import Monitor, monitored
from emocap_pretrain.ranks.join import joined
from emocap_pretrain.ranks.runtime import Runtime
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.tracking.hosts import JobHostMetrics
from emocap_pretrain.training.conclusion import conclude, conclude_again, evaluate_again, is_done, prepare_tasks
from emocap_pretrain.training.session import Session, open_session

log = logging.getLogger(__name__)

POLL_S = 1.0  # Between two looks whether to stop: the job is told of its end seconds before.


def pretrain(config: Config, runtime: Runtime) -> None:
    """Bring the run at `config.url` to its last step from its newest checkpoint, evaluate it, and write its report.

    Every rank of the job calls this. A run that is done already is not trained; if its evaluation settings have changed
    it is evaluated again. When the runtime asks to stop, the state is committed and the function returns; a later start
    resumes from there, on any number of ranks.

    Raises:
        TrainingError: If the loss is no longer finite; no checkpoint holds it.
        LostContact: If another rank is gone or hangs; it says which.
        Superseded: If a newer start of the run has taken over.
    """
    with joined(config.cluster, runtime) as world:
        store = open_store(config.url)
        # One rank may read for minutes, longer than others wait in the training's group.
        patient = world.patient("opening")
        if patient.run_on_main(lambda: is_done(config, store)):
            if not patient.run_on_main(lambda: conclude_again(config, store)):
                evaluate_again(config, store, patient, world.device)
            return
        patient.run_on_main(lambda: prepare_tasks(config, store))
        number = world.run_on_main(lambda: Attempt.begin(store, ranks=world.world_size).number)
        attempt = Attempt(store, number)
        watched = monitored(
            world,
            attempt,
            name=config.name,
            steps=config.steps,
            timeout_s=config.cluster.timeout_s,
            silence_s=config.cluster.silence_s,
        )
        # What this attempt has opened is closed after the monitor, which first records a failure.
        with ExitStack() as opened, watched as monitor:
            session = opened.enter_context(open_session(config, world, attempt, patient))
            progress = _train(session, runtime, monitor)
            if session.engine.step >= config.steps:
                session.guard.require_updates(session.engine.step)
                monitor.enter("evaluating", session.engine.step)
                conclude(session, progress, patient)


def _train(session: Session, runtime: Runtime, monitor: Monitor) -> Progress:
    """Steps until the last one or until told to stop; the last checkpoint is committed when this returns."""
    config, engine, world = session.config, session.engine, session.world
    hosts = JobHostMetrics(world, Path(config.data.cache))
    began, progress, poll_every = time.perf_counter(), session.before, 1
    stopping = monitor.poll_requests(runtime.should_stop())
    monitor.enter("training", engine.step)
    while engine.step < config.steps and not stopping:
        with monitor.timer.measure("data"), session.quarantine.recorded(engine.step):
            batch, cursor, damaged = next(session.batches)
        session.quarantine.meet(damaged, engine.step)
        metrics = engine.train(batch.to(world.device), judge=session.judge, timed=monitor.timer.measure)
        session.heed(engine.step, skipped=bool(metrics["skipped"]))
        monitor.count(batch)
        monitor.enter("training", engine.step)
        logs = _due(engine.step, config.tracking.every_steps, config.steps)
        if logs or engine.step % poll_every == 0:
            stopping = monitor.poll_requests(runtime.should_stop())
        saves = stopping or _due(engine.step, config.checkpoint.every_steps, config.steps)
        if logs or saves:
            row = monitor.gather_metrics(_numbers(metrics, engine.step, session)) | _left_out(session)
            row |= hosts.gather(engine.step, row["time/step_s"])
            poll_every = max(1, int(POLL_S / row["time/step_s"]))
            progress = Progress(session.before.seconds + time.perf_counter() - began, row)
        if logs and world.is_main:
            _tell(session, runtime, progress.row)
        if saves:
            with monitor.timer.measure("saving"):
                session.save(cursor, progress)
            monitor.enter("training", engine.step)
        if logs:
            _spread(session.saver.finished(), session, runtime, monitor)
            session.sweep()
    monitor.enter("saving", engine.step)
    _spread(session.saver.wait(), session, runtime, monitor)
    session.sweep(ended=True)
    _spread(session.saver.wait(), session, runtime, monitor)
    return progress


def _spread(saved: Sequence[Checkpoint], session: Session, runtime: Runtime, monitor: Monitor) -> None:
    """Tells the tracker, the monitor and the runtime of committed checkpoints."""
    for checkpoint in saved:
        url = f"{session.store.url}/{checkpoint.folder}"
        session.tracker.checkpoint(url, checkpoint.step, checkpoint.digest)
        loss = state_of(checkpoint).progress.row.get("loss")
        if loss is not None:
            session.tracker.score({"checkpoint/loss": loss}, checkpoint.step)
        monitor.update_status(checkpoint=checkpoint.step)
        runtime.committed(url)
    session.tracker.forget(session.saver.swept())


def _tell(session: Session, runtime: Runtime, row: Mapping[str, float]) -> None:
    step = session.engine.step
    session.tracker.log(row, step)
    loss = f"loss {row['loss']:.3f}" if "loss" in row else "no loss"
    runtime.heartbeat(step, session.config.steps, f"{loss} · {row['samples_per_s']:.0f} samples/s")


def _left_out(session: Session) -> dict[str, float]:
    """How many samples the run has left out so far; those that are new go to the tracker by name. A collective."""
    quarantine = session.quarantine
    if quarantine.settle() and session.world.is_main:
        session.tracker.text(QUARANTINE_FILE, quarantine.dump().decode())
    return {"data_quarantined": float(len(quarantine.rows))} if quarantine.budget else {}


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _numbers(metrics: Mapping[str, Tensor | float | None], step: int, session: Session) -> dict[str, float]:
    """Plain numbers. Those that are not finite are left out where such updates are, else they are an error.

    Equal on all ranks, so all raise.
    """
    row = {name: float(value) for name, value in metrics.items() if value is not None}
    wrong = [f"{name}={value}" for name, value in row.items() if not math.isfinite(value)]
    if not row.pop("finite", 1.0) and not wrong:
        wrong = ["a loss or a gradient since the last row"]
    if wrong and session.config.health.nonfinite == "stop":
        raise TrainingError(
            f"step {step}: {', '.join(wrong)} is not finite. The newest checkpoint is from before it; "
            "try a smaller optimizer.lr, a longer warm-up, engine.precision=fp32, or health.nonfinite=skip."
        )
    return {name: value for name, value in row.items() if math.isfinite(value)}
