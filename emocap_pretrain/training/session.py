"""Opens everything that the training loop uses, from the newest checkpoint if there is one, and closes it.

All ranks call `open_session` together. It determines the id of the run, and opens the checkpoint to resume from, the
tokenizer, the model and its optimizer, the stream of data, and the tracker, in this order. What only rank 0 reads or
decides is broadcast, together with its errors, so all ranks raise an error if rank 0 does. The result is a `Session`,
whose methods the loop calls.
"""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

import torch
from emocap_shards.background import Background
from emocap_shards.cursor import Cursor
from emocap_shards.errors import StoreError
from emocap_shards.inspecting.wording import counted
from emocap_shards.store import Store
from emocap_shards.tar_samples import TarSamples

from emocap_pretrain.checkpoint.best import Criterion
from emocap_pretrain.checkpoint.layout import ENGINE, TOKENIZER, WEIGHTS
from emocap_pretrain.checkpoint.loader import Resumed, resumable
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.retention import Retention
from emocap_pretrain.checkpoint.saver import Saver
from emocap_pretrain.checkpoint.state import Progress, TrainingState, state_of
from emocap_pretrain.config import stored
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.balancing import read_balance
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.datasets import Filters, data_digest_of, foreign_data, open_filters
from emocap_pretrain.data.labels import count_classes
from emocap_pretrain.data.loader import LoadedBatch, batches, shared_memory_free, shrink_to_fit_and_warn
from emocap_pretrain.data.quarantine import Quarantine
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import CheckpointError, RolledBack, Superseded, TrainingError
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.run_folder.unsent import UNSENT_FILE
from emocap_pretrain.tracking.spool import Row, readable_rows
from emocap_pretrain.tracking.tracker import RunStatus, Tracker
from emocap_pretrain.training.build import (
    TowerEngine,
    build_collate,
    build_engine,
    build_model,
    build_stream,
    first_tokenizer,
    open_tars,
)
from emocap_pretrain.training.guard import Guard, Verdict
from emocap_pretrain.training.label_loss import Counts
from emocap_pretrain.training.other_steps import note_on_fresh_pass, note_on_other_steps
from emocap_pretrain.training.run_tracker import open_tracker
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import Layout

# How long a save waits for rows on their way to the tracker, the end of an attempt for the store to take unsent rows,
# and the end after a bad loss for the checkpoint in progress.
FLUSH_S, KEEP_UNSENT_S, COMMIT_S = 2.0, 30.0, 60.0

WEIGHTS_REPORT = "weights.txt"
"""Name, in the run's folder and in MLflow, of the table that says what became of the weights of `model.from`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """Holds what the training loop uses on this rank during one attempt.

    Leaving the `with` block of a session closes its batches, its saver and its tracker. Only the training thread uses a
    session, with one exception: the saver's thread calls the function `write` that is defined in `save`.

    Attributes:
        config: The settings of the run.
        world: All ranks.
        attempt: The attempt, which writes status and failures into the run's folder.
        store: The run's folder.
        data_digest: Digest of the training data; a checkpoint with another digest is refused.
        tokenizer: The tokenizer of the run.
        engine: The model and its optimizer.
        tracker: The tracker of MLflow on rank 0. On the other ranks it is a tracker that keeps rows in memory.
        saver: Saves checkpoints in a thread.
        guard: Judges the loss of every step.
        batches: The batches of this rank.
        quarantine: The damaged samples that the run has left out.
        skipped: The number of samples that this rank has left out in this attempt, by tar, if it reads
            `data.webdataset`.
        before: Progress of the earlier attempts: their time of training, and the metrics that were logged last.
        class_counts: The number of training samples of each class, by the name of the label, for the labels whose
            classes are balanced; empty if there is none.
        concluded: Set once the run is done: it has made all steps or has ended early, and its report is written.
        evaluated: By its step, the results of the checkpoint that this attempt has evaluated last, with what was found
            for each sample; empty before the first evaluation.
    """

    config: Config
    world: RankGroup
    attempt: Attempt
    store: Store
    data_digest: str
    tokenizer: Tokenizer
    engine: TowerEngine
    tracker: Tracker
    saver: Saver
    guard: Guard
    batches: Generator[LoadedBatch]
    quarantine: Quarantine
    before: Progress
    class_counts: Counts
    skipped: Counter[str] = field(default_factory=Counter[str])
    concluded: Event = field(default_factory=Event)
    evaluated: dict[int, tuple[TaskResult, ...]] = field(default_factory=dict[int, tuple[TaskResult, ...]])

    def save(self, cursor: Cursor, progress: Progress) -> bool:
        """Begins to save a checkpoint of the current step, in the background. This is a collective.

        `Saver.finished` returns the checkpoint once it is committed. Nothing is saved if no update was made since the
        last checkpoint, because that checkpoint has the same weights.

        Args:
            cursor: The position in the data at which the next step begins.
            progress: The time of training so far and the newest metrics, which the checkpoint stores.

        Returns:
            Whether a save has begun; False if nothing is saved.
        """
        # The last step whose update was made is equal on all ranks, so all of them return here. The first weights of
        # a run are saved as step 0 or not at all.
        step = self.engine.step
        updated = step - self.guard.streak(step)
        if updated <= self.saver.newest or updated == 0 < step:
            return False
        # First the previous snapshot must be released, because the next one uses the same memory.
        self.saver.wait_for_previous()
        snapshot = self.engine.snapshot()
        state = {
            "config": stored.dump(self.config),
            "cursor": cursor.to_json(),
            "data_digest": self.data_digest,
            "engine": self.engine.layout.to_json(),
            "guard": self.guard.state(),
            "progress": asdict(progress),
            "run_id": self.tracker.run_id,
        }
        if architecture := self.engine.text_architecture:
            state["text_architecture"] = architecture
        if self.class_counts:
            state["class_counts"] = dict(self.class_counts)

        def write(folder: Path) -> None:  # The saver's thread calls this, so a slow tracker delays no step.
            # An error here is exchanged between the ranks, and no manifest is put.
            snapshot.require_finite()
            snapshot.write(folder)
            if self.world.is_main:
                (folder / TOKENIZER).write_text(self.tokenizer.to_json(), encoding="utf-8")
                self.tracker.flush(FLUSH_S)
                # Rows of later steps may be among them. A resumed run sends these rows again, and they count once.
                (folder / UNSENT_FILE).write_bytes(unsent.dump(self.tracker.unsent()))

        self.saver.save(step, state, write, snapshot.release)
        return True

    def sweep(self, *, ended: bool = False) -> None:
        """Begins to delete old checkpoints. Does nothing if the last update was left out.

        The newest `checkpoint.keep_last` checkpoints are kept, but only good checkpoints count towards this number. A
        checkpoint is good if training has continued from its weights and made an update. No step follows the last
        checkpoint of a run, so with `ended` it counts as good too.
        """
        step = self.engine.step
        # `Saver.sweep` counts checkpoints of steps before its argument.
        if not self.guard.streak(step):
            self.saver.sweep(step + 1 if ended else step)

    def next_batch(self) -> tuple[Batch, Cursor]:
        """Returns this rank's rows of the next step, on its device, and the cursor for a checkpoint of that step.

        A cursor is a position in the training data. The returned cursor is the end of the returned step. A run that
        resumes from the checkpoint begins there.

        Raises:
            BudgetSpent: If this rank has met more damaged samples than the run may leave out.
        """
        # If the budget is spent inside the loader, this rank stores what it has met before the error ends it.
        with self.quarantine.recorded(self.engine.step):
            batch, cursor, damaged = next(self.batches)
        if self.config.data.webdataset:  # Its samples have no place in an index, and no budget.
            self.skipped.update(each.shard for each in damaged)
        else:
            self.quarantine.add(damaged, self.engine.step)
        return batch.to(self.world.device), cursor

    def enforce(self, verdict: Verdict) -> None:
        """Logs the guard's verdict on the step that has just ended. Raises an error if the verdict ends the attempt.

        Raises:
            RolledBack: If the verdict is "rollback". The next attempt resumes from the newest checkpoint and leaves out
                this update.
            TrainingError: If the verdict is "stop".
        """
        if not verdict.reason:
            return
        if self.world.is_main:
            log.warning("%s: %s", verdict.reason, verdict.action)
        if verdict.action == "rollback":
            # The step is stored before the error is raised. A crash between the two has the effect of the roll-back.
            step = self.engine.step
            self.world.run_on_main(lambda: self.guard.remember(self.store, step, verdict.reason))
            raise RolledBack(f"{verdict.reason}: the run returns to its newest checkpoint, without this update.")
        if verdict.action == "stop":
            raise TrainingError(f"{verdict.reason}. The newest checkpoint is from before this step.")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        """Closes the batches, the saver and the tracker, and reports to the tracker how the attempt ended.

        Rank 0 stores the rows (reports) that the tracker has not received in the run's folder. After `Superseded` it
        does not, because the folder was deleted or belongs to a newer attempt.
        """
        self.batches.close()  # This ends the loader processes.
        # The exact classes are compared. After `LostContact`, which is a subclass, the other ranks may be gone, and the
        # collectives of a save would wait for them for up to a day.
        if kind in (TrainingError, RolledBack):
            self._finish_checkpoint()
        self.saver.close()
        is_done = self.concluded.is_set() or self.engine.step >= self.config.steps
        unbroken: RunStatus = "FINISHED" if is_done else "KILLED"
        self.tracker.finish("FAILED" if kind else unbroken)
        if self.tracker.superseded and kind is not Superseded:
            log.warning(
                "attempt %d is no longer tracked, because MLflow run %s has rows of an attempt with a higher number: "
                "find out which other folder writes to the run",
                self.attempt.number,
                self.tracker.run_id,
            )
        if kind is not Superseded:  # After `Superseded` a newer attempt owns the folder, or it was deleted.
            self._keep_unsent_at_end()

    def keep_unsent(self, further: Sequence[Row]) -> None:
        """Stores in the run's folder the rows (reports) that the tracker has not received, and the rows `further`.

        Only rank 0 calls this, before it writes the report that marks the run as done.

        Raises:
            StoreError: If the store does not accept the rows. The error must not be ignored, because no later attempt
                could compute the rows of a finished run again.
        """
        unsent.write(self.store, [*self.tracker.unsent(), *further], number=self.attempt.number)

    def _keep_unsent_at_end(self) -> None:
        """Stores in the run's folder the rows (reports) that the tracker has not received. Only rank 0 does this.

        If the store fails or needs more than `KEEP_UNSENT_S` seconds, a warning says that the rows are lost.
        """
        if not self.world.is_main:
            return
        rows = self.tracker.unsent()
        # The store repeats a failing request for minutes. So a thread makes the call, and the process need not wait.
        act = partial(unsent.write_or_warn, self.store, rows, number=self.attempt.number)
        try:
            Background("unsent-rows").submit(act).result(KEEP_UNSENT_S)
        except (TimeoutError, StoreError) as error:
            log.warning("%d rows for the tracker are lost: %s", len(rows), error or "the store does not answer")

    def _finish_checkpoint(self) -> None:
        """Waits for the checkpoint in progress, after a `TrainingError` or a `RolledBack`.

        All ranks raise these errors together, so all ranks wait for the checkpoint. If the checkpoint cannot be
        committed within `COMMIT_S` seconds, a warning is logged.
        """
        try:
            self.saver.wait(COMMIT_S)
        except (CheckpointError, Superseded, RuntimeError) as error:
            log.warning("the checkpoint in progress is lost: %s", error)


def open_session(config: Config, world: RankGroup, attempt: Attempt, opening: RankGroup) -> Session:
    """Builds the run on this rank and loads its newest checkpoint. This is a collective.

    The caller closes the returned session by leaving its `with` block.

    Args:
        config: The settings of the run.
        world: All ranks.
        attempt: This attempt.
        opening: The same ranks in a group from `RankGroup.patient`. The timeout of its collectives is long, because
            some ranks download far more than others.

    Raises:
        ConfigError: If there are more ranks than samples in a global batch, /dev/shm has no room for loader processes,
            or the folder belongs to another run.
        CheckpointError: If the newest checkpoint belongs to other data or another model.
        TrackingError: If MLflow refuses a new run, or does not know the run that is resumed.
    """
    # Whose folder is it, and which updates and samples have earlier attempts left out?
    split = batch_split(config.global_batch, config.micro_batch, ranks=world.world_size)
    store = attempt.store
    # Rank 0 lists tars once, so that all ranks divide the same list.
    tars = opening.run_on_main(lambda: open_tars(config))
    # So does it read filters, because that may take minutes, and all ranks must draw from the same samples.
    filters = opening.run_on_main(lambda: open_filters(config.data))
    data_digest = tars.digest if tars else data_digest_of(config.data, filters)
    run_id = opening.run_on_main(lambda: RunFolder(store).run_id(config))
    guard = Guard.open(config.health, store, opening)
    quarantine = Quarantine.open(store, world, config.data.error_budget)
    with quarantine.recorded(step=0):
        rows: list[Row] = []
        # The checkpoint: everything that its local files are needed for happens within this block.
        with resumable(store, opening, _files_needed(config, world)) as found:
            state = state_of(found.checkpoint) if found else None
            if found and state:
                _require_same_data(found.checkpoint, state, config, data_digest, world)
                guard.load(asdict(state.guard))
                rows = _unsent_rows(found.folder / UNSENT_FILE) if world.is_main else []
            # Only a new run needs the source of its first weights. Rank 0 alone opens it, when it is first needed.
            starting_point = StartingPoint(config.model)
            saved = found.folder if found else None
            tokenizer = _open_tokenizer(config, opening, starting_point, saved, tars, filters)
            # A run counts its classes once, so that a resumed run has the same weights of classes.
            class_counts = (
                state.class_counts
                if state
                else opening.run_on_main(lambda: count_classes(config.data, config.objective.labels, filters))
            )
            engine, weights = _open_engine(config, world, opening, tokenizer, starting_point, found, class_counts)
        # The data continue at the checkpoint's cursor, on any number of ranks and loader processes.
        start = Cursor.from_json(state.cursor) if state else Cursor()
        # The classes follow from the data, whose digest is that of the checkpoint, so they are not stored.
        balance = opening.run_on_main(lambda: read_balance(config.data, filters))
        stream = build_stream(config, tars, world.info, start, balance=balance, filters=filters)
        if world.is_main and (note := note_on_fresh_pass(config.data, start)):
            log.warning("%s", note)
        collate = build_collate(config, tokenizer)
        loading = shrink_to_fit_and_warn(
            config.data,
            each_bytes=collate.batch_bytes(split.rows),
            ranks=world.info.local_world_size,
            free_bytes=shared_memory_free(),
        )
        pin = world.device.startswith("cuda")
        # The tracker comes last, so that a run that cannot start for another reason creates no run in MLflow.
        checkpoint = found.checkpoint if found else None
        # A run that has begun has its parent in `run.json`, and the parent's checkpoint may be deleted.
        parent = None if found else opening.run_on_main(lambda: starting_point.parent)
        tracker = open_tracker(config, opening, attempt, run_id, stream, collate, checkpoint, rows, parent, filters)
        if weights:
            opening.run_on_main(lambda: store.put(WEIGHTS_REPORT, weights.encode()))
            tracker.log_text(WEIGHTS_REPORT, weights)
        best = Criterion.of(config.checkpoint.keep_best, config.stored()["evaluation"])
        retention = Retention(config.checkpoint.keep_last, config.checkpoint.keep_every, best)
        refused, newest = (found.refused, engine.step) if found else ((), -1)
        return Session(
            config=config,
            world=world,
            attempt=attempt,
            store=store,
            data_digest=data_digest,
            tokenizer=tokenizer,
            engine=engine,
            tracker=tracker,
            saver=Saver(store, world, run_attempt=attempt, retention=retention, newest=newest, refused=refused),
            guard=guard,
            batches=batches(stream, collate, workers=loading.workers, prefetch=loading.prefetch, pin=pin),
            quarantine=quarantine,
            before=state.progress if state else Progress(),
            class_counts=class_counts,
        )


def _unsent_rows(path: Path) -> list[Row]:
    """Returns the rows (reports) that the tracker had not received when the checkpoint was saved.

    `path` is the file `unsent.json` of the checkpoint.
    """
    return readable_rows(unsent.parse(path.read_bytes(), f"{UNSENT_FILE} of the checkpoint"))


def _files_needed(config: Config, world: RankGroup) -> Callable[[Checkpoint, str], bool]:
    """Returns a function that says whether this rank needs a file of a checkpoint.

    Every rank needs the tokenizer and its own share of the optimizer's state. Rank 0 also needs the weights and
    `unsent.json`.
    """
    # `needed` is called for each file. The engine files of a checkpoint are computed once, by its save attempt.
    files: dict[str, frozenset[str]] = {}

    def engine_files(found: Checkpoint) -> frozenset[str]:
        # The model is not built yet. If its parameters are not those of the checkpoint, `Engine.load` raises an error.
        saved = Layout.from_json(state_of(found).engine)
        now = replace(saved, zero_stage=config.engine.zero_stage, ranks=world.world_size)
        return frozenset(saved.files_for(now, world.rank))

    def needed(found: Checkpoint, path: str) -> bool:
        if not path.startswith(f"{ENGINE}/"):
            return world.is_main or path not in (WEIGHTS, UNSENT_FILE)
        files[found.attempt] = files.get(found.attempt) or engine_files(found)
        return path in files[found.attempt]

    return needed


def _open_engine(
    config: Config,
    world: RankGroup,
    opening: RankGroup,
    tokenizer: Tokenizer,
    start: StartingPoint,
    found: Resumed | None,
    class_counts: Counts,
) -> tuple[TowerEngine, str]:
    """Returns the engine, and for a new run with `model.from` the table that says what became of the weights."""
    # All ranks draw the same first weights. The engine broadcasts those of rank 0 in any case, so rank 0 alone reads
    # the weights of a checkpoint (decision 16), of `model.from` or of `model.image.pretrained`.
    torch.manual_seed(config.seed)
    architecture = (
        state_of(found.checkpoint).text_architecture if found else opening.run_on_main(lambda: start.text_architecture)
    )
    is_first = found is None and config.model.from_ is None
    model = build_model(config, tokenizer.vocabulary, weights=is_first, text_architecture=architecture)
    if world.is_main:
        for note in model.notes:
            log.warning("%s", note)
    if found is None:
        report = opening.run_on_main(lambda: start.load_into(model))
        # The checks before the start have printed what they could compare: all but the weights of a hub.
        if report and world.is_main and config.model.image.pretrained == "hub":
            log.info("%s", "\n".join(report.lines()))
        return build_engine(config, model, world, class_counts=class_counts), report.table() if report else ""
    if world.is_main:
        fill(model, found.folder / WEIGHTS)
    engine = build_engine(config, model, world, class_counts=class_counts)
    engine.load(found.folder, Layout.from_json(state_of(found.checkpoint).engine), found.checkpoint.step)
    return engine, ""


def _require_same_data(
    found: Checkpoint, state: TrainingState, config: Config, data_digest: str, world: RankGroup
) -> None:
    if state.data_digest != data_digest:
        raise CheckpointError(foreign_data(config.data, config.url))
    if world.is_main:
        log.info("resuming from step %d, saved by %s", found.step, counted(found.ranks, "rank"))
        if note := note_on_other_steps(config.optimizer, config.steps, found):
            log.warning("%s", note)


def _open_tokenizer(
    config: Config,
    world: RankGroup,
    start: StartingPoint,
    saved: Path | None,
    tars: TarSamples | None,
    filters: Filters,
) -> Tokenizer:
    if saved:
        return Tokenizer.from_json((saved / TOKENIZER).read_text(encoding="utf-8"))

    def read() -> str:
        return start.tokenizer(lambda: first_tokenizer(config, tars, filters)).to_json()

    return Tokenizer.from_json(world.run_on_main(read))
