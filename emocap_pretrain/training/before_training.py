"""Evaluates the model of a run before its first step, so that the report can show what training has changed.

    <run>/before_training.json    the results at step 0, and the evaluation settings that led to them

The model is evaluated as at the end of the run: a checkpoint of step 0 is saved, and all ranks evaluate the model that
is restored from it. So the evaluation does not touch the model that is trained, at any stage of ZeRO. It changes no bit
of the training, because all random numbers are functions of the seed, the step and the sample (decision 2).

If an attempt ends before `before_training.json` is written, the next attempt resumes from the checkpoint of step 0 and
evaluates it again. Once the file exists, step 0 is evaluated again only if the evaluation settings change.
"""

import logging

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.manifest import read as read_checkpoint
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import BEFORE_TRAINING, BeforeTraining
from emocap_pretrain.run_folder.report import same_evaluation
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.run_folder.storage import Unreadable
from emocap_pretrain.training.conclusion import evaluate_checkpoint, track
from emocap_pretrain.training.session import Session

BEFORE_TRAINING_FILE = "before_training.json"
Results = tuple[TaskResult, ...]

log = logging.getLogger(__name__)


def evaluate_first_weights(session: Session, everyone: RankGroup) -> None:
    """Evaluates the checkpoint of step 0, unless its results are stored, and tracks the results. This is a collective.

    The checkpoint must be committed. If an attempt tracks the same results again, the tracker keeps them once.
    """
    config = session.config
    results = results_before_training(config, session.store, everyone, session.world.device)
    if session.world.is_main:
        track(session.tracker, config, results, 0, before_training=config.steps > 0)


def results_before_training(config: Config, store: Store, everyone: RankGroup, device: str) -> Results:
    """Returns the results at step 0 for the current evaluation settings, on every rank. This is a collective.

    Stored results are returned if they belong to these settings. Otherwise the checkpoint of step 0 is evaluated, and
    the new results are stored. The results are empty if the settings do not ask for this evaluation, or if nothing is
    stored for these settings and the checkpoint of step 0 does not exist any more.
    """
    if not config.evaluates_before_training:
        return ()
    known = everyone.run_on_main(lambda: _known(config, store))
    if known is not None:
        return known
    if everyone.is_main:
        log.info("evaluating the model as it was before the first step")
    _, results = evaluate_checkpoint(config, everyone, device, step=0)
    settings = config.stored()["evaluation"]
    everyone.run_on_main(
        lambda: storage.write(store, BEFORE_TRAINING_FILE, BEFORE_TRAINING, BeforeTraining(results, settings))
    )
    return results


def _known(config: Config, store: Store) -> Results | None:
    """Returns the stored results; None if step 0 must be evaluated; () if its checkpoint does not exist for that."""
    found = storage.read(store, BEFORE_TRAINING_FILE, BEFORE_TRAINING)
    if isinstance(found, Unreadable):
        log.warning("%s: step 0 is evaluated again if its checkpoint still exists", found)
    elif found and same_evaluation(found.evaluation, config.stored()["evaluation"]):
        return found.results
    if read_checkpoint(store, 0):
        return None
    log.info("the report will have no results from before training, because the run has no checkpoint of step 0")
    return ()
