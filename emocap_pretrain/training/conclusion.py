"""Concludes a run: all ranks evaluate its last checkpoint, then rank 0 tracks the results and writes the report.

If the user starts a finished run again, this module sends the rows (reports) that the tracker has not received yet, and
evaluates the run again if the evaluation settings have changed. `before_training.py` evaluates the first checkpoint.

`report.json` is the last file that a run writes. If an attempt ends before it has written this file, the next attempt
resumes from the last checkpoint. It repeats only the evaluation, because no step is left to train. Results that are
tracked twice count once in the tracker.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from emocap_shards.mask import masked
from emocap_shards.store import Store

from emocap_pretrain.checkpoint.best import Criterion, best_checkpoint, write_results
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.checkpoint.manifest import newest as newest_checkpoint
from emocap_pretrain.checkpoint.state import Progress
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.datasets import evaluation_data
from emocap_pretrain.evaluation import look, on_benchmarks, run_tasks, tasks
from emocap_pretrain.evaluation.comparison import ModelResults, compare
from emocap_pretrain.evaluation.domain import TrainingCaptions, with_domains
from emocap_pretrain.evaluation.look import MappedFace
from emocap_pretrain.evaluation.other_weights import curve, scores_of
from emocap_pretrain.evaluation.outcome_scores import MOST_ENTRIES
from emocap_pretrain.evaluation.page import page
from emocap_pretrain.evaluation.result_file import EvaluatedModel
from emocap_pretrain.evaluation.thumbnails import mapped
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.interop.restore import has_start, restore, restore_start
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import unsent
from emocap_pretrain.run_folder.attempts import newest
from emocap_pretrain.run_folder.documents import REPORT
from emocap_pretrain.run_folder.folder import REPORT_FILE, RunFolder
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.results import WEIGHTS_TITLES, OtherWeights, TaskResult, Weights, average_of, curves
from emocap_pretrain.run_folder.scored_steps import EarlyEnd, ScoredStep
from emocap_pretrain.tracking.spool import readable_rows, row
from emocap_pretrain.tracking.tracker import Tracker
from emocap_pretrain.training.build import tracked_run
from emocap_pretrain.training.session import Session

PAGE_FILE = "report.html"

log = logging.getLogger(__name__)


def is_done(config: Config, store: Store) -> bool:
    """Returns whether the run in this folder is finished: its report exists, and nothing is left to train.

    If `steps` was raised after the report was written, the run is not finished. The same holds for a run that has ended
    early, if it would not have ended with the current settings. The function reads only `run.json` and `report.json`.

    Raises:
        ConfigError: If the folder belongs to a run with other settings.
    """
    folder = RunFolder(store)
    if folder.run_id(config) is None:
        return False
    report, evaluation = folder.report(config.steps), config.evaluation
    if report is None:
        return False
    return report.ends(config.steps, config.checkpoint.keep_best, evaluation.stop_after, evaluation.min_improvement)


def reopen(config: Config, store: Store) -> None:
    """Changes the report of a run that has ended early and is trained further, so that the run does not count as done.

    The driver of the run would otherwise take a failed attempt for the end of the run.
    """
    report = RunFolder(store).report(config.steps)
    if report and report.early_end:
        RunFolder(store).write_report(replace(report, early_end=None))


def prepare_tasks(config: Config, store: Store) -> None:
    """Lets each evaluation task check its settings against its data before training begins.

    The data are not read if the newest checkpoint was saved with the same evaluation settings, because the attempt that
    saved it has made this check.

    Raises:
        ConfigError: If the settings of a task do not fit the data, or no task has the score `checkpoint.keep_best`.
    """
    tasks.require_score(config.checkpoint.keep_best, config.evaluation)
    if not tasks.were_prepared(newest_checkpoint(store), config.stored()["evaluation"]):
        tasks.prepare(config.evaluation, has_local=config.objective.local > 0, head=config.objective.labels)
        on_benchmarks.prepare(*on_benchmarks.copies_of_run(config.evaluation))


def conclude(
    session: Session,
    progress: Progress,
    before_training: tuple[TaskResult, ...],
    everyone: RankGroup,
    early_end: EarlyEnd | None = None,
) -> None:
    """Evaluates the last checkpoint on all ranks, tracks the results and writes the report. This is a collective.

    Args:
        session: The session, whose last checkpoint is committed.
        progress: The seconds of training over all attempts, and the metrics that were logged last.
        before_training: The results at step 0. They are the results of a run without steps, which has no others.
        everyone: A group of all ranks from `RankGroup.patient`, whose timeout is longer than an evaluation.
        early_end: Why the run ends before its last step; None if it has made all steps.
    """
    config, stored, step = session.config, session.config.stored(), session.engine.step
    # All ranks evaluate. From here on the other ranks have nothing to do, and no collective follows.
    if step:
        weights, results, maps = evaluate_checkpoint(
            config, everyone, session.world.device, with_maps=True, known=session.evaluated.get(step)
        )
        other_weights = _evaluate_other_weights(config, everyone, session.world.device)
    else:
        weights, results, maps, other_weights = "raw", before_training, (), ()
    if not session.world.is_main:
        session.concluded.set()
        return
    report = Report(
        name=config.name,
        url=stored["url"],
        step=step,
        seconds=progress.seconds,
        ranks=session.world.world_size,
        samples_per_s=step * config.global_batch / progress.seconds if step else 0.0,
        loss=progress.row.get("loss"),
        run_id=session.tracker.run_id,
        tracking_uri=masked(stored["tracking"]["uri"]),
        results=results,
        evaluation=stored["evaluation"] if config.evaluation.url else None,
        experiment_id=session.tracker.experiment_id,
        weights=weights,
        before_training=before_training if step else (),
        warm_start=RunFolder(session.store).warm_start(),
        other_weights=other_weights,
        best=_best(config, session.store, step, results),
        early_end=early_end,
    )
    # First the tracker gets everything, then what it has not received is stored, and last the report is written. After
    # a crash in between, the next attempt does all of it again.
    _track_report(session.tracker, config, report, maps)
    # The report ends the run, so all that the tracker has not received is stored before it.
    session.keep_unsent([row("status", 0, {"status": "FINISHED"})])
    RunFolder(session.store).write_report(report)
    session.concluded.set()


def _best(config: Config, store: Store, step: int, results: tuple[TaskResult, ...]) -> ScoredStep | None:
    """Stores the results of the last step beside those of earlier ones, and returns the best evaluated checkpoint.

    Nothing is stored, and the result is None, if the settings name no score.
    """
    criterion = Criterion.of(config.checkpoint.keep_best, config.stored()["evaluation"])
    if criterion is None:
        return None
    write_results(store, step, results, config.stored()["evaluation"])
    return best_checkpoint(store, criterion, [each.step for each in committed(store)])


def conclude_again(config: Config, store: Store) -> bool:
    """Sends the rows (reports) of a finished run that the tracker has not received yet.

    The rows in a copied run folder are not sent, because they belong to the original run.

    Returns:
        False if the evaluation settings have changed since the report was written; then nothing is sent. Otherwise
        True, even if some rows have not arrived.
    """
    report = RunFolder(store).report(config.steps)
    if report is None or not report.evaluated_with(config.stored()["evaluation"]):
        return False
    if not RunFolder(store).copied_from():  # The rows in a copy belong to the original run.
        from emocap_pretrain.tracking.mlflow_tracker import deliver_unsent

        deliver_unsent(store, tracked_run(config), report.run_id, number=newest(store))
    return True


def evaluate_again(
    config: Config, store: Store, before_training: tuple[TaskResult, ...], everyone: RankGroup, device: str
) -> None:
    """Evaluates the last checkpoint of a finished run with the current settings. This is a collective.

    `before_training` holds the results at step 0 with these settings.

    The results in the report and in the tracker are replaced. If the run folder is a copy, the tracker records the
    results in a new run, and `run.json` and the report in the folder get the id of this new run. No attempt begins, so
    the output of `emocap status` stays the same.
    """
    weights, results, maps = evaluate_checkpoint(config, everyone, device, with_maps=True)
    other_weights = _evaluate_other_weights(config, everyone, device)
    report = RunFolder(store).report(config.steps) if everyone.is_main else None
    if report:
        before_training = before_training if report.step else ()
        report = replace(report, weights=weights, results=results, other_weights=other_weights)
        best = _best(config, store, report.step, results)
        report = replace(report, before_training=before_training, best=best)
        _replace_results(config, store, report, maps)


def track(
    tracker: Tracker, config: Config, results: Sequence[TaskResult], step: int, *, before_training: bool = False
) -> None:
    """Sends the evaluation dataset, the scores and the confusion matrices of a checkpoint to the tracker.

    Only rank 0 calls this function, which imports matplotlib. Scores replace earlier scores of the same step. With
    `before_training`, the pictures get names of their own, because those of the last step would replace them.
    """
    from emocap_pretrain.tracking import pictures

    if not results:
        return
    data = evaluation_data(config.evaluation, config.stored()["evaluation"])
    tracker.log_datasets(data)
    for result in results:
        tracker.replace_scores(result.metrics(), step)
        tracker.set_tags(result.tags())
        for matrix in result.confusion_matrices:
            with TemporaryDirectory(prefix="emocap-") as folder:
                path = Path(folder) / f"{matrix.name}.png"
                pictures.confusion(matrix, path, of=pictures.subject(config.name, data, step=step))
                name = f"{matrix.name}_before_training" if before_training else matrix.name
                folder_name = f"{result.benchmark}/{result.task}" if result.benchmark else result.task
                tracker.log_picture(f"pictures/{folder_name}/{name}.png", path)


def track_other_weights(tracker: Tracker, config: Config, other_weights: Sequence[OtherWeights], step: int) -> None:
    """Sends the scores with other weights to the tracker, and draws the curve of the interpolations.

    Only rank 0 calls this function, which imports matplotlib.
    """
    from emocap_pretrain.tracking import pictures

    for each in other_weights:
        tracker.replace_scores(each.metrics(), step)
    if drawn := curves(other_weights):
        data = evaluation_data(config.evaluation, config.stored()["evaluation"])
        with TemporaryDirectory(prefix="emocap-") as folder:
            path = Path(folder) / "interpolation.png"
            pictures.interpolation(drawn, path, of=pictures.subject(config.name, data, step=step))
            tracker.log_picture("pictures/interpolation.png", path)


def track_maps(tracker: Tracker, config: Config, maps: Sequence[MappedFace], step: int) -> None:
    """Draws attention maps into one picture and sends it to the tracker; does nothing if there are no maps.

    Only rank 0 calls this function, which imports matplotlib.
    """
    from emocap_pretrain.tracking import pictures

    if maps:
        data = evaluation_data(config.evaluation, config.stored()["evaluation"])
        with TemporaryDirectory(prefix="emocap-") as folder:
            path = Path(folder) / "maps.png"
            rows = [(face.name, face.maps) for face in maps]
            pictures.attention_maps(rows, path, of=pictures.subject(config.name, data, step=step))
            tracker.log_picture("pictures/maps.png", path)


def evaluated(
    config: Config, embedder: Embedder, everyone: RankGroup, training: TrainingCaptions | None = None
) -> tuple[TaskResult, ...]:
    """Returns the results of the config's evaluation tasks for a model, on every rank. This is a collective.

    Args:
        config: The config with the evaluation settings, equal on all ranks.
        embedder: The model, on this rank's device.
        everyone: The ranks among which the data are divided.
        training: What is known about the captions on which the model was trained; None takes what `config` says.
    """
    # Rank 0 alone warns of prompts that are longer than the text tower reads.
    if everyone.is_main and embedder.tokenizer:
        for cut in tasks.cut_prompts(config.evaluation, embedder.tokenizer, embedder.model.prompt_length):
            if cut.cut:
                log.warning("texts that are cut: %s", cut)
    stored = config.stored()
    url = stored["evaluation"]["url"]
    captions = training or TrainingCaptions.of_run(stored)
    results = run_tasks.evaluate(config.evaluation, embedder, everyone, url=url)
    on_copies = on_benchmarks.evaluate_run(config.evaluation, embedder, everyone)
    return (
        *with_domains(results, captions, config.evaluation, url=url),
        *with_domains(on_copies, captions, config.evaluation, url=None),
    )


class EvaluatedCheckpoint(NamedTuple):
    """Holds the results of a checkpoint.

    Attributes:
        weights: Which weights of the checkpoint were evaluated.
        results: The result of each task; empty if the config names no evaluation dataset.
        maps: The attention maps of a few samples, on rank 0 and if they were asked for; otherwise empty.
    """

    weights: Weights
    results: tuple[TaskResult, ...]
    maps: Sequence[MappedFace] = ()


def evaluate_checkpoint(
    config: Config,
    everyone: RankGroup,
    device: str,
    *,
    step: int | None = None,
    with_maps: bool = False,
    known: tuple[TaskResult, ...] | None = None,
) -> EvaluatedCheckpoint:
    """Evaluates the checkpoint of a step on all ranks. This is a collective.

    Args:
        config: The settings of the run.
        everyone: The ranks among which the data are divided.
        device: The device of this rank.
        step: The step of the checkpoint; None takes the newest one.
        with_maps: Whether attention maps are made too.
        known: The results of this checkpoint, if it was evaluated before with these settings: the tasks are then not
            run again. All ranks must pass equal ones.

    Returns:
        Which weights of the checkpoint were evaluated, and the results; no results if the config names no evaluation
        dataset. A run that keeps an average of its weights evaluates the average.
    """
    url = config.evaluation.url
    if url is None:
        return EvaluatedCheckpoint("raw", ())
    # Rank 0 alone reads the checkpoint and broadcasts it; otherwise a thousand ranks would each read the weights.
    restored = everyone.run_on_main(lambda: restore(config.url, step=step, config=config))
    embedder = Embedder.of(restored, device)
    results = evaluated(config, embedder, everyone) if known is None else known
    opened = partial(tasks.evaluation_filter, config.evaluation)
    maps = look.of_run(embedder, url, opened) if with_maps and everyone.is_main else []
    return EvaluatedCheckpoint(restored.weights, results, maps)


def _evaluate_other_weights(config: Config, everyone: RankGroup, device: str) -> tuple[OtherWeights, ...]:
    """Evaluates the newest checkpoint with other weights than `evaluate_checkpoint`. This is a collective.

    These are the weights of the step, if the run keeps an average of them, and the interpolations that the settings
    name. If the start of the run is not known, a warning is logged: an error would come after all training.
    """
    found, shares = tuple[OtherWeights, ...](), config.evaluation.interpolate
    if config.evaluation.url is None:
        return found
    if average_of(config.stored()) != "raw":
        raw = everyone.run_on_main(lambda: restore(config.url, config=config, weights="raw"))
        raw.model.to(device)
        found = (scores_of(raw, everyone),)
    if not shares:
        return found
    if not everyone.run_on_main(lambda: has_start(config.url)):
        if everyone.is_main:
            log.warning("the report has no curve of evaluation.interpolate: the run has no checkpoint of step 0")
        return found
    start, trained = everyone.run_on_main(
        lambda: (restore_start(config.url, config=config), restore(config.url, config=config))
    )
    trained.model.to(device)
    return found + curve(trained, start.to(device).state_dict(), shares, everyone)


def _replace_results(config: Config, store: Store, report: Report, maps: Sequence[MappedFace]) -> None:
    """Writes the report of a finished run after a new evaluation, and sends it and the maps to the tracker.

    If the folder of the run is a copy, a new run is made in MLflow. Only rank 0 calls this function.
    """
    from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker

    # No attempt has begun, so the tracker gets the number of the newest one. In a copy, a new run in MLflow is made, as
    # when a copy is trained (`run_tracker._parent`).
    number = newest(store)
    parent = RunFolder(store).copied_from()
    rows = unsent.of_this_run(readable_rows(unsent.read(store)), store, original=parent)
    run_id = None if parent else report.run_id
    parents: dict[str, Any] = {"parent": parent, "warm_start": report.warm_start}
    tracker = MlflowTracker.start(tracked_run(config), run_id, number=number, unsent=rows, **parents)
    try:
        if parent:
            RunFolder(store).write_run(config, tracker.run_id, **parents)
            report = replace(report, run_id=tracker.run_id, url=config.stored()["url"])
        report = replace(report, evaluation=config.stored()["evaluation"])
        report = replace(report, experiment_id=tracker.experiment_id or report.experiment_id)
        _track_report(tracker, config, report, maps)
        RunFolder(store).write_report(report)
    # The run stays finished, whatever happened here: its earlier report is complete.
    finally:
        tracker.finish("FINISHED")
        unsent.write_or_warn(store, tracker.unsent(), number=number)


def _track_report(tracker: Tracker, config: Config, report: Report, maps: Sequence[MappedFace]) -> None:
    """Sends the results before training, those of the last step with maps and page, and the report to the tracker."""
    track(tracker, config, report.before_training, 0, before_training=True)
    track(tracker, config, report.results, report.step)
    track_other_weights(tracker, config, report.other_weights, report.step)
    track_maps(tracker, config, maps, report.step)
    tracker.log_text(REPORT_FILE, REPORT.dump(report).decode())
    if report.results:
        tracker.log_text(PAGE_FILE, _page(report, maps))
    tracker.set_description(report.markdown())


def _page(report: Report, maps: Sequence[MappedFace]) -> str:
    """Returns the HTML page of the results. It has the attention maps, and no image of a person."""
    weights = "" if report.weights == "raw" else WEIGHTS_TITLES[report.weights]
    model = EvaluatedModel(report.name[:200], report.url, report.step, weights, run_id=report.run_id)
    _, faces = mapped(maps)
    results = ModelResults(model, report.results, faces=tuple(faces), evaluation=report.evaluation or {})
    return page(compare([results], most_entries=MOST_ENTRIES))
