"""Evaluates the model of a run before its first step, so that the report can show what training has changed.

    <run>/before_training.json    the results at step 0, and the evaluation settings that led to them

The model is evaluated exactly as at the end of the run: a checkpoint of step 0 is saved, and all ranks evaluate the
model that is restored from it. So the model that trains is not touched, under any stage of ZeRO. Training is equal to
the bit with and without this evaluation, because all its random numbers are functions of the seed, the step and the
sample (decision 2).

If the run ends before `before_training.json` is written, the next attempt resumes from the checkpoint of step 0 and
evaluates it again. Once the file exists, no attempt evaluates step 0 again, unless the evaluation settings change.
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
    """Evaluates the checkpoint of step 0, unless the run has its results, and tracks them. This is a collective.

    The checkpoint must be committed. Results that are tracked twice count once in the tracker.
    """
    config = session.config
    results = results_before_training(config, session.store, everyone, session.world.device)
    if session.world.is_main:
        track(session.tracker, config, results, 0, before_training=config.steps > 0)


def results_before_training(config: Config, store: Store, everyone: RankGroup, device: str) -> Results:
    """Returns the results at step 0 for the current evaluation settings, on every rank. This is a collective.

    The stored results are returned if they belong to these settings. Otherwise the checkpoint of step 0 is evaluated,
    and the new results are stored. The results are empty if the settings ask for none, or if there are no stored
    results and the run does not have a checkpoint of step 0 any more.
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
    """Returns the stored results; () if there cannot be any; None if the checkpoint of step 0 must be evaluated."""
    found = storage.read(store, BEFORE_TRAINING_FILE, BEFORE_TRAINING)
    if isinstance(found, Unreadable):
        log.warning("%s: step 0 is evaluated again if its checkpoint still exists", found)
    elif found and same_evaluation(found.evaluation, config.stored()["evaluation"]):
        return found.results
    if read_checkpoint(store, 0):
        return None
    log.info("the report has no results from before training: the run has no checkpoint of step 0")
    return ()
