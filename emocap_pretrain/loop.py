"""The training function: the same one under every launcher."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from emocap_shards.cursor import Cursor
from emocap_shards.store import open_store
from torch import Tensor

from emocap_pretrain import pictures
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import TrainingError
from emocap_pretrain.evaluation.report import Report, ZeroShot
from emocap_pretrain.evaluation.restore import restore
from emocap_pretrain.evaluation.zero_shot import zero_shot
from emocap_pretrain.meter import Meter
from emocap_pretrain.quarantine import QUARANTINE
from emocap_pretrain.run_folder import RunFolder
from emocap_pretrain.runtime import Runtime
from emocap_pretrain.session import Progress, Session, open_session
from emocap_pretrain.world import joined


def pretrain(config: Config, runtime: Runtime) -> None:
    """Bring the run at `config.url` to its last step from wherever it stands, evaluate it, and write its report.

    Every rank of the job calls this. A run that is done already is left as it is. When the runtime asks to stop, the
    state is committed and the function returns; a later start goes on from there.

    Raises:
        TrainingError: If the loss is no longer finite; no checkpoint holds it.
    """
    with joined(config, runtime) as world:
        if world.from_main(lambda: _is_done(config)):
            return
        session = open_session(config, world)
        try:
            progress = _train(session, runtime)
            if world.is_main and session.engine.step >= config.steps:
                _conclude(session, progress)
        except BaseException:
            session.tracker.finish("FAILED")
            raise
        session.tracker.finish("FINISHED" if session.engine.step >= config.steps else "KILLED")


def _is_done(config: Config) -> bool:
    """Whether the run of this folder, which must be this run, has its report."""
    folder = RunFolder(open_store(config.url))
    folder.run_id(config)
    return folder.report(config.steps) is not None


def _train(session: Session, runtime: Runtime) -> Progress:
    """Steps until the last one or until told to stop."""
    config, engine, world = session.config, session.engine, session.world
    meter, began, progress, stopping = Meter(world), time.perf_counter(), session.before, False
    while engine.step < config.steps and not stopping:
        with meter.waiting():
            batch, cursor, damaged = next(session.batches)
        session.quarantine.meet(damaged, engine.step)
        metrics = engine.train(batch.to(world.device))
        meter.count(batch)
        logs = _due(engine.step, config.tracking.every_steps, config.steps)
        stopping = logs and world.any(runtime.should_stop())
        saves = stopping or _due(engine.step, config.checkpoint.every_steps, config.steps)
        if logs or saves:
            row = _finite(metrics, engine.step) | meter.read() | _left_out(session)
            progress = Progress(session.before.seconds + time.perf_counter() - began, row)
        if logs and world.is_main:
            _tell(session, runtime, progress.row)
        if saves:
            _save(session, runtime, cursor, progress)
    return progress


def _tell(session: Session, runtime: Runtime, row: Mapping[str, float]) -> None:
    step = session.engine.step
    session.tracker.log(row, step)
    runtime.heartbeat(step, session.config.steps, f"loss {row['loss']:.3f} · {row['samples_per_s']:.0f} samples/s")


def _left_out(session: Session) -> dict[str, float]:
    """How many samples the run has left out so far; those that are new go to the tracker by name. A collective."""
    quarantine = session.quarantine
    if quarantine.settle() and session.world.is_main:
        session.tracker.text(QUARANTINE, quarantine.dump().decode())
    return {"data_quarantined": float(len(quarantine.rows))} if quarantine.budget else {}


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _finite(metrics: Mapping[str, Tensor | float | None], step: int) -> dict[str, float]:
    """Plain numbers, or an error that names those that are none; equal on all ranks, so all raise."""
    row = {name: float(value) for name, value in metrics.items() if value is not None}
    wrong = [f"{name}={value}" for name, value in row.items() if not math.isfinite(value)]
    if not row.pop("finite", 1.0) and not wrong:
        wrong = ["a loss since the last row"]
    if row.get("gradient_norm", 0.0) < 0:  # What DeepSpeed's stage 3 says instead of a norm that is not finite.
        wrong.append("gradient_norm")
    if wrong:
        raise TrainingError(
            f"step {step}: {', '.join(wrong)} is not finite. The newest checkpoint is from before it; "
            "try a smaller optimizer.lr, a longer warm-up, or engine.precision=fp32."
        )
    return row


def _save(session: Session, runtime: Runtime, cursor: Cursor, progress: Progress) -> None:
    checkpoint = session.save(cursor, progress)
    url = f"{session.store.url}/{checkpoint.folder}"
    if session.world.is_main:
        session.tracker.checkpoint(url, checkpoint.step, checkpoint.digest)
    runtime.committed(url)


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
        loss=progress.row["loss"],
        run_id=session.tracker.run_id,
        tracking_uri=stored["tracking"]["uri"],
        zero_shot=_evaluated(session) if config.evaluation.url else None,
    )
    session.tracker.text("report.json", report.dump().decode())
    session.tracker.describe(report.markdown())
    RunFolder(session.store).conclude(report)


def _evaluated(session: Session) -> ZeroShot:
    config = session.config
    restored = restore(config.url, device=session.world.device)
    matrix = zero_shot(restored.model, restored.tokenizer, config.evaluation)
    result = ZeroShot.of(config.stored()["evaluation"]["url"], matrix)
    session.tracker.log({"zero_shot/uar": result.uar, "zero_shot/war": result.war}, session.engine.step + 1)
    with TemporaryDirectory(prefix="emocap-") as folder:
        path = Path(folder) / "confusion.png"
        pictures.confusion(matrix, path)
        session.tracker.picture("pictures/confusion.png", path)
    return result
