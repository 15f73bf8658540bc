"""The training function: the same one under every launcher."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from emocap_shards.mask import masked
from emocap_shards.store import Store, open_store
from torch import Tensor

from emocap_pretrain import pictures
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.manifest import newest as newest_checkpoint
from emocap_pretrain.checkpoint.state import Progress, state_of
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import TrainingError
from emocap_pretrain.evaluation.labels import check_labels, were_compared
from emocap_pretrain.evaluation.restore import restore
from emocap_pretrain.evaluation.zero_shot import zero_shot
from emocap_pretrain.feed import cut_prompts
from emocap_pretrain.health.hosts import Hosts
from emocap_pretrain.health.monitor import Monitor, monitored
from emocap_pretrain.quarantine import QUARANTINE_FILE
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.run_folder.attempts import Attempt, newest
from emocap_pretrain.run_folder.documents import REPORT
from emocap_pretrain.run_folder.folder import REPORT_FILE, RunFolder
from emocap_pretrain.run_folder.report import Report, ZeroShot
from emocap_pretrain.runtime import Runtime
from emocap_pretrain.session import Session, open_session
from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker, deliver_unsent
from emocap_pretrain.tracking.spool import row, understood
from emocap_pretrain.tracking.tracker import Tracker
from emocap_pretrain.world import joined

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
    with joined(config, runtime) as world:
        store = open_store(config.url)
        if world.from_main(lambda: is_done(config, store)):
            if world.is_main and not conclude_again(config, store):
                evaluate_again(config, store, world.device)
            return
        # One rank may read for minutes, longer than others wait in the training's group.
        opening = world.aside()
        opening.from_main(lambda: compare_labels(config, store))
        number = world.from_main(lambda: Attempt.begin(store, ranks=world.place.world).number)
        attempt = Attempt(store, number)
        # What this attempt has opened is closed after the monitor, which first records a failure.
        with ExitStack() as opened, monitored(config, world, attempt) as monitor:
            session = opened.enter_context(open_session(config, world, attempt, opening))
            progress = _train(session, runtime, monitor)
            if session.engine.step >= config.steps:
                session.guard.require_updates(session.engine.step)
            if world.is_main and session.engine.step >= config.steps:
                monitor.at(session.engine.step, "evaluating")
                _conclude(session, progress)


def is_done(config: Config, store: Store) -> bool:
    """Whether the run of this folder, which must be this run, has the report of its last step.

    Raises:
        ConfigError: If the folder belongs to a run with other settings.
    """
    folder = RunFolder(store)
    return folder.run_id(config) is not None and folder.report(config.steps) is not None


def conclude_again(config: Config, store: Store) -> bool:
    """Send the tracker what it lacks of a run that is done; False if its evaluation settings have changed since."""
    report = RunFolder(store).report(config.steps)
    if report is None or not report.evaluated_with(config.stored()["evaluation"]):
        return False
    if not RunFolder(store).original():  # The rows in a copy are the original's.
        deliver_unsent(store, config, report.run_id, number=newest(store))
    return True


def evaluate_again(config: Config, store: Store, device: str) -> None:
    """Evaluate the last checkpoint of a run that is done with the settings of now; nothing else of the run changes.

    No start is counted, so `emocap status` says what it said before.
    """
    report = RunFolder(store).report(config.steps)
    if report is None:
        return
    check_labels(config.evaluation)
    number = newest(store)
    parent = RunFolder(store).original()
    rows = [] if parent else understood(unsent.left(store))
    run_id = None if parent else report.run_id
    tracker = MlflowTracker.start(config, run_id, number=number, unsent=rows, parent=parent)
    try:
        if parent:
            RunFolder(store).begin(config, tracker.run_id, parent=parent)
            report = replace(report, run_id=tracker.run_id, url=config.stored()["url"])
        settings = config.stored()["evaluation"]
        report = replace(report, zero_shot=_evaluated(config, tracker, report.step, device), evaluation=settings)
        tracker.text(REPORT_FILE, REPORT.dump(report).decode())
        tracker.describe(report.markdown())
        RunFolder(store).conclude(report)
    finally:
        tracker.finish("FINISHED")
        unsent.leave(store, tracker.unsent(), number=number)


def compare_labels(config: Config, store: Store) -> None:
    """Compare all labels of the evaluation dataset with the classes, unless a start with these settings has done so.

    Raises:
        ConfigError: If they do not fit.
    """
    if not were_compared(newest_checkpoint(store), config):
        check_labels(config.evaluation)


def _train(session: Session, runtime: Runtime, monitor: Monitor) -> Progress:
    """Steps until the last one or until told to stop; the last checkpoint is committed when this returns."""
    config, engine, world = session.config, session.engine, session.world
    hosts = Hosts(world, Path(config.data.cache))
    began, progress, poll_every = time.perf_counter(), session.before, 1
    stopping = monitor.asked_to_stop(runtime.should_stop())
    monitor.at(engine.step)
    while engine.step < config.steps and not stopping:
        with monitor.sections.timed("data"), session.quarantine.recorded(engine.step):
            batch, cursor, damaged = next(session.batches)
        session.quarantine.meet(damaged, engine.step)
        metrics = engine.train(batch.to(world.device), judge=session.judge, timed=monitor.sections.timed)
        session.heed(engine.step, skipped=bool(metrics["skipped"]))
        monitor.count(batch)
        monitor.at(engine.step)
        logs = _due(engine.step, config.tracking.every_steps, config.steps)
        if logs or engine.step % poll_every == 0:
            stopping = monitor.asked_to_stop(runtime.should_stop())
        saves = stopping or _due(engine.step, config.checkpoint.every_steps, config.steps)
        if logs or saves:
            row = monitor.row(_numbers(metrics, engine.step, session)) | _left_out(session)
            row |= hosts.row(engine.step, row["time/step_s"])
            poll_every = max(1, int(POLL_S / row["time/step_s"]))
            progress = Progress(session.before.seconds + time.perf_counter() - began, row)
        if logs and world.is_main:
            _tell(session, runtime, progress.row)
        if saves:
            with monitor.sections.timed("saving"):
                session.save(cursor, progress)
            monitor.at(engine.step)
        if logs:
            _spread(session.saver.finished(), session, runtime, monitor)
            session.sweep()
    monitor.at(engine.step, "saving")
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
        monitor.tell(checkpoint=checkpoint.step)
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


def _conclude(session: Session, progress: Progress) -> None:
    """Evaluate the last checkpoint, track the result and write the report; rank 0 alone."""
    config, stored = session.config, session.config.stored()
    report = Report(
        name=config.name,
        url=stored["url"],
        step=session.engine.step,
        seconds=progress.seconds,
        ranks=session.world.place.world,
        samples_per_s=session.engine.step * config.global_batch / progress.seconds,
        loss=progress.row.get("loss"),
        run_id=session.tracker.run_id,
        tracking_uri=masked(stored["tracking"]["uri"]),
        zero_shot=_evaluated(config, session.tracker, session.engine.step, session.world.device)
        if config.evaluation.url
        else None,
        evaluation=stored["evaluation"] if config.evaluation.url else None,
    )
    session.tracker.text(REPORT_FILE, REPORT.dump(report).decode())
    session.tracker.describe(report.markdown())
    session.keep([row("status", 0, {"status": "FINISHED"})])  # From here on the run is done, whatever comes.
    RunFolder(session.store).conclude(report)


def _evaluated(config: Config, tracker: Tracker, step: int, device: str) -> ZeroShot:
    restored = restore(config.url, device=device, config=config)
    for cut in cut_prompts(config.evaluation, restored.tokenizer, config.model.text.lengths):
        if cut.cut:
            log.warning("texts that are cut: %s", cut)
    matrix = zero_shot(restored.model, restored.tokenizer, config.evaluation)
    result = matrix.result(config.stored()["evaluation"]["url"])
    tracker.rescore({"zero_shot/uar": result.uar, "zero_shot/war": result.war}, step)
    with TemporaryDirectory(prefix="emocap-") as folder:
        path = Path(folder) / "confusion.png"
        pictures.confusion(matrix, path)
        tracker.picture("pictures/confusion.png", path)
    return result
