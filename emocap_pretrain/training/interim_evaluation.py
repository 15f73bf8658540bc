"""Evaluates checkpoints of a run before its end: the checkpoint of step 0, and every n-th checkpoint.

`checkpoint/best.py` says where the results lie, and compares them. If they do not improve any more, the run ends early
(`early_end_at`).

The model is evaluated as at the end of the run: the checkpoint is committed, and all ranks evaluate the model that is
restored from it. So the evaluation does not touch the model that is trained, at any stage of ZeRO. It changes no bit of
the training, because all random numbers are functions of the seed, the step and the sample (decision 2).

If an attempt ends before the results are stored, the next attempt resumes from the same checkpoint and evaluates it
again. Once the results are stored, the checkpoint is evaluated again only in two cases: the evaluation settings have
changed, or the step was trained again, which gave other weights.
"""

import logging

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.best import Criterion, belong, file_of, history, write_results
from emocap_pretrain.checkpoint.manifest import read as read_checkpoint
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import STEP_RESULTS
from emocap_pretrain.run_folder.report import same_evaluation
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.run_folder.scored_steps import EarlyEnd, evaluations_without_improvement
from emocap_pretrain.run_folder.storage import Unreadable
from emocap_pretrain.training.conclusion import evaluate_checkpoint, track
from emocap_pretrain.training.session import Session

Results = tuple[TaskResult, ...]

log = logging.getLogger(__name__)


def evaluate_step(session: Session, everyone: RankGroup) -> None:
    """Evaluates the checkpoint of the current step, unless its results are stored, and tracks the results.

    The checkpoint must be committed. The results are tracked in either case, because an earlier attempt may have ended
    before it tracked them. The tracker keeps equal results only once. This is a collective.

    New results are also kept in `session.evaluated`: if the run ends early at this step, `conclude` takes them.
    """
    config, step = session.config, session.engine.step
    results, are_new = _results_of(config, session.store, everyone, session.world.device, step)
    session.evaluated.clear()
    if are_new:  # Stored results lack what was found for each sample, which the page of the last step shows.
        session.evaluated[step] = results
    if session.world.is_main:
        track(session.tracker, config, results, step, before_training=step == 0 < config.steps)
        _warn_without_score(Criterion.of(config.checkpoint.keep_best, config.stored()["evaluation"]), results, step)


def early_end_at(config: Config, store: Store, step: int) -> EarlyEnd | None:
    """Returns why the run ends at a step, after the checkpoint of this step was evaluated; None if training continues.

    The result depends only on the settings and on the stored results of this and of earlier steps. So it is the same
    after the run was killed and resumed. Rank 0 alone calls this function.
    """
    criterion = Criterion.of(config.checkpoint.keep_best, config.stored()["evaluation"])
    bound = config.evaluation.stop_after
    if criterion is None or bound is None:
        return None
    scored, least = history(store, criterion, step), config.evaluation.min_improvement
    # The checkpoint of this step is not evaluated if a stop was requested. Then a later evaluation decides.
    if not scored or scored[-1].step != step or evaluations_without_improvement(scored, least) < bound:
        return None
    return EarlyEnd(tuple(scored), bound, least, config.steps)


def results_before_training(config: Config, store: Store, everyone: RankGroup, device: str) -> Results:
    """Returns the results at step 0 for the current evaluation settings, on every rank. This is a collective.

    If stored results were computed with these settings, they are returned. Otherwise the checkpoint of step 0 is
    evaluated, and the new results are stored. The result is empty if the settings do not ask for this evaluation, or if
    no results for these settings are stored and the run has no checkpoint of step 0.
    """
    return _results_of(config, store, everyone, device, 0)[0] if config.evaluates_before_training else ()


def _results_of(config: Config, store: Store, everyone: RankGroup, device: str, step: int) -> tuple[Results, bool]:
    """Returns the results of a step, and whether they were computed now. This is a collective."""
    known = everyone.run_on_main(lambda: _known(config, store, step))
    if known is not None:
        return known, False
    if everyone.is_main:
        log.info("evaluating the model as it was before the first step" if step == 0 else f"evaluating step {step}")
    results = evaluate_checkpoint(config, everyone, device, step=step).results
    everyone.run_on_main(lambda: write_results(store, step, results, config.stored()["evaluation"]))
    return results, True


def _warn_without_score(criterion: Criterion | None, results: Results, step: int) -> None:
    if criterion and not criterion.of_results(step, results):
        names = ", ".join(sorted(name for result in results for name in result.metrics()))
        log.warning("step %d has no score checkpoint.keep_best=%s; its scores are %s", step, criterion.name, names)


def _known(config: Config, store: Store, step: int) -> Results | None:
    """Returns the stored results of the step if they belong to its checkpoint and to the evaluation settings.

    Otherwise the result is None if the step must be evaluated, or () if it cannot be, because it has no checkpoint.
    """
    found, checkpoint = storage.read(store, file_of(step), STEP_RESULTS), read_checkpoint(store, step)
    if isinstance(found, Unreadable):
        log.warning("%s: step %d is evaluated again if its checkpoint still exists", found, step)
    elif found and belong(found, checkpoint) and same_evaluation(found.evaluation, config.stored()["evaluation"]):
        return found.results
    if checkpoint:
        return None
    what = f"results of step {step}" if step else "results from before training"
    log.info("the report will have no %s, because the run has no checkpoint of step %d", what, step)
    return ()
