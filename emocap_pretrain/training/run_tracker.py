"""Opens the tracker of a run: rank 0 creates a run in MLflow, or continues the one that earlier attempts have used.

Only rank 0 imports MLflow and matplotlib. The imports are inside of functions, because they take a quarter of the time
that a rank needs to start.
"""

import logging
import socket
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emocap_shards.stream import SampleStream
from emocap_shards.webdataset_stream import WebDatasetStream

from emocap_pretrain.checkpoint.layout import steps_listed
from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.checkpoint.state import state_of
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.datasets import Filters, cut_captions, cut_texts, training_data
from emocap_pretrain.data.loader import Collate
from emocap_pretrain.data.parts import PROMPT_PART
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.evaluation.tasks import cut_prompts
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import attempts, unsent
from emocap_pretrain.run_folder.attempts import Attempt
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.tracking.pages import CHECKPOINT_LOSS
from emocap_pretrain.tracking.spool import Row, readable_rows
from emocap_pretrain.tracking.tracker import MemoryTracker, Tracker
from emocap_pretrain.training.build import tracked_run

PREVIEWED, EPOCHS = 8, 4  # Samples in the picture of a new run, and the epochs whose forms of them it shows.

log = logging.getLogger(__name__)


def open_tracker(
    config: Config,
    world: RankGroup,
    attempt: Attempt,
    run_id: str | None,
    stream: SampleStream,
    collate: Collate,
    found: Checkpoint | None,
    saved: list[Row],
    warm_start: Parent | None = None,
    filters: Filters = (),
) -> Tracker:
    """Returns MLflow's tracker on rank 0, and a `MemoryTracker` on the other ranks. This is a collective.

    Args:
        config: The settings of the run.
        world: All ranks.
        attempt: This attempt.
        run_id: MLflow's id of the run that earlier attempts have recorded; None if there is none yet.
        stream: The stream of samples. For a new run, a picture of its first samples is tracked.
        collate: Makes batches of the run. For a new run, it gives the samples of the picture the form in which they are
            trained, and its tokenizer counts the texts that are cut.
        found: The checkpoint from which the run resumes; None without a checkpoint.
        saved: The rows (reports) that the tracker had not received when the checkpoint `found` was saved; empty on all
            ranks but rank 0.
        warm_start: The checkpoint of another run with whose weights a new run begins. It is recorded in `run.json`,
            and not used if the run exists already.
        filters: The filters of the datasets (`open_filters`).
    """
    folder = RunFolder(attempt.store)
    begun: list[Tracker] = []  # Only rank 0 adds its tracker: a tracker holds threads and cannot be broadcast.
    place = world.info
    hosts = sorted(filter(None, world.gather(socket.gethostname() if place.local_rank == 0 else None)))

    def begin() -> str:
        from emocap_pretrain.tracking import pictures
        from emocap_pretrain.tracking.copies import with_copies
        from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker

        parent = _parent(config, attempt, run_id) if run_id else ""
        waiting = [*saved, *readable_rows(unsent.read(attempt.store))]
        rows = unsent.of_this_run(waiting, attempt.store, original=parent)
        before = attempts.cause(attempts.failures(attempt.store, attempt.number - 1))
        facts = {"ranks": place.world_size, "hosts": hosts, "reason": before.message if before else ""}
        # A copy gets a new run in MLflow, like a new folder.
        known = None if parent else run_id
        began_with = folder.warm_start() if parent else warm_start
        options: dict[str, Any] = {"number": attempt.number, "facts": facts, "unsent": rows, "parent": parent}
        run = tracked_run(config)
        main = MlflowTracker.start(run, known, **options, warm_start=began_with)
        begun.append(with_copies(main, run, first_step=found.step + 1 if found else 0))
        if found:  # The attempt that committed the checkpoint may have ended before it reported it to the tracker.
            begun[0].log_checkpoint(f"{attempt.store.url}/{found.folder}", found.step, found.digest)
            loss = state_of(found).progress.row.get("loss")
            if known is not None and loss is not None:
                begun[0].replace_scores({CHECKPOINT_LOSS: loss}, found.step)
            begun[0].keep_checkpoints(steps_listed(attempt.store))
        # `run.json` is written after MLflow has created the run, because it stores the run's id. A crash between the
        # two leaves a run in MLflow that no folder names.
        if known is None:
            folder.write_run(config, begun[0].run_id, parent=parent, warm_start=began_with)
            digest = stream.source.digest if isinstance(stream, WebDatasetStream) else ""
            data = training_data(config.data, config.stored()["data"], filters, tars_digest=digest)
            begun[0].log_datasets(data)
            _preview(begun[0], stream, collate, of=pictures.subject(config.name, data))
            _count_cut_texts(begun[0], config, stream, collate.tokenizer, filters)
        return begun[0].run_id

    shared = world.run_on_main(begin)
    return begun[0] if begun else MemoryTracker(run_id=shared)


def _parent(config: Config, attempt: Attempt, run_id: str) -> str:
    """Returns MLflow's id of the original run if this run's folder is a copy; otherwise an empty text.

    The folder also counts as a copy if MLflow shows that another folder writes to the run `run_id`.
    """
    store = attempt.store
    parent = RunFolder(store).copied_from()
    if parent:
        log.warning("%s is a copy of the folder of MLflow run %s: it is tracked as a run of its own", store.url, run_id)
        return parent
    from emocap_pretrain.tracking.mlflow_run import newest_tracked_attempt

    # This attempt has the newest number of its folder and has not written to the tracker yet. So an equal or higher
    # number in the tracker comes from another folder.
    if newest_tracked_attempt(config.tracking, run_id) >= attempt.number >= attempts.newest(store):
        log.warning(
            "another folder has written to MLflow run %s as attempt %d or later, so %s is a backup or a copy of it: it "
            "is tracked as a run of its own",
            run_id,
            attempt.number,
            store.url,
        )
        return run_id
    return ""


def _preview(tracker: Tracker, stream: SampleStream, collate: Collate, *, of: str) -> None:
    """Tracks a picture of the first samples of the run, as they are stored and as the first epochs train them."""
    from emocap_pretrain.tracking import pictures

    with TemporaryDirectory(prefix="emocap-") as folder:
        path = Path(folder) / "samples.png"
        samples = stream.first(PREVIEWED)
        forms = [[collate.prepare(replace(sample, epoch=epoch)) for epoch in range(EPOCHS)] for sample in samples]
        pictures.preview(samples, path, of=of, forms=forms)
        tracker.log_picture("pictures/samples.png", path)


def _count_cut_texts(
    tracker: Tracker, config: Config, stream: SampleStream, tokenizer: Tokenizer, filters: Filters
) -> None:
    """Logs and tracks the share of the texts that are cut.

    A text is cut if it has more tokens than `model.text.lengths` allows. The texts are the captions of the first
    samples, and the prompts of the evaluation.
    """
    lengths = config.model.text.lengths
    if isinstance(stream, WebDatasetStream):
        samples, cut = cut_texts(stream.source.captions(), tokenizer, lengths)
    else:
        samples, cut = cut_captions(config.data.datasets, tokenizer, lengths, filters)
    cut += cut_prompts(config.evaluation, tokenizer, lengths.by_part[PROMPT_PART.name])
    cure = "; model.text.lengths says how many tokens are read" if any(each.cut for each in cut) else ""
    if any(each.texts for each in cut):  # A training on labels has none.
        log.info("texts that are cut, of the first %s samples: %s%s", f"{samples:,}", ", ".join(map(str, cut)), cure)
    tracker.log_metrics({f"cut/{each.kind}": each.share for each in cut}, 0)
