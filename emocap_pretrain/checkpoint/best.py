"""Finds the best of a run's evaluated checkpoints by the score that `checkpoint.keep_best` names.

    <run>/before_training.json                 the results at step 0, and the evaluation settings that led to them
    <run>/evaluations/step-00002000.json       the same for a later step

The best checkpoint is a function of these documents and of the checkpoints that exist. Nothing else stores which one it
is, so an attempt that ends at any moment leaves nothing that could be wrong. Only results that were computed from the
checkpoint itself, by the digest of its manifest, and with the current evaluation settings are compared.

`retention.py` never deletes the best checkpoint, and `interop/restore.py` finds it for `--step best`.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from emocap_shards.store import Store

from emocap_pretrain.checkpoint.manifest import Checkpoint, read
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.stored import filled
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import STEP_RESULTS, StepResults
from emocap_pretrain.run_folder.report import same_evaluation
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.run_folder.scored_steps import ScoredStep, best_of
from emocap_pretrain.run_folder.storage import Unreadable, read_repeatedly

BEFORE_TRAINING_FILE = "before_training.json"
_FOLDER = "evaluations"
_FILE = re.compile(rf"{_FOLDER}/step-(\d+)\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Criterion:
    """Says by which score checkpoints are compared.

    Attributes:
        name: The score as TASK/SCORE.
        evaluation: The evaluation settings as this version stores them. Results of other settings are not compared.
    """

    name: str
    evaluation: Mapping[str, Any]

    @classmethod
    def of(cls, name: str | None, evaluation: Mapping[str, Any]) -> Self | None:
        """Returns the criterion of a run; None if `name`, which is `checkpoint.keep_best`, is None."""
        return None if name is None else cls(name, evaluation)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint | None, name: str | None = None) -> Self | None:
        """Returns the criterion in the settings that a checkpoint stores; None if they name no score.

        The settings are only data. If `name` is given, it replaces the score that they name.
        """
        config = checkpoint.state.get("config") if checkpoint else None
        settings: Mapping[str, Any] = cast("Mapping[str, Any]", config) if isinstance(config, dict) else {}
        section, evaluation = settings.get("checkpoint"), settings.get("evaluation")
        if name is None and isinstance(section, dict):
            name = cast("Mapping[str, Any]", section).get("keep_best")
        if not isinstance(name, str) or not isinstance(evaluation, dict):
            return None
        return cls(name, filled(cast("dict[str, Any]", evaluation), EvaluationConfig))

    def of_results(self, step: int, results: Iterable[TaskResult]) -> ScoredStep | None:
        """Returns the score among results at a step; None if they do not have it."""
        task, _, name = self.name.partition("/")
        scores = (score for result in results if result.task == task for score in result.scores)
        return next((ScoredStep(step, task, score) for score in scores if score.name == name), None)

    def of_stored(self, step: int, found: StepResults) -> ScoredStep | None:
        """Returns the score in a stored document; None if it lacks it, or has results of other settings."""
        same = same_evaluation(found.evaluation, dict(self.evaluation))
        return self.of_results(step, found.results) if same else None


def file_of(step: int) -> str:
    """Returns the path of the document with the results at a step, relative to the run's folder."""
    return f"{_FOLDER}/step-{step:08d}.json" if step else BEFORE_TRAINING_FILE


def write_results(store: Store, step: int, results: tuple[TaskResult, ...], evaluation: dict[str, Any]) -> None:
    """Stores the results at a step, with the evaluation settings that led to them, as those of its checkpoint."""
    checkpoint = read(store, step)
    found = StepResults(results, evaluation, checkpoint.digest if checkpoint else "")
    storage.write(store, file_of(step), STEP_RESULTS, found)


def belong(found: StepResults, checkpoint: Checkpoint | None) -> bool:
    """Returns whether stored results were computed from this checkpoint, by the digest of its manifest.

    The result is also True if there is no checkpoint, or if the results have no digest. An earlier version stored only
    results of step 0 and no digest; the weights of step 0 never change.
    """
    return not (checkpoint and found.checkpoint) or found.checkpoint == checkpoint.digest


def history(store: Store, criterion: Criterion, until: int) -> list[ScoredStep]:
    """Returns the scores of all evaluated checkpoints up to the step `until`, in ascending order of their steps.

    Checkpoints that have been deleted are included. Results of later steps are not, because they belong to steps that
    are trained again.
    """
    listed = (_FILE.fullmatch(entry.path) for entry in store.list(_FOLDER))
    steps = {0, until, *(int(found[1]) for found in listed if found)}
    read_ = ((step, _results_of(store, step)) for step in sorted(steps) if step <= until)
    scored = (criterion.of_stored(step, found) for step, found in read_ if isinstance(found, StepResults))
    return [each for each in scored if each]


def best_checkpoint(store: Store, criterion: Criterion, steps: Iterable[int]) -> ScoredStep | None:
    """Returns the best evaluated checkpoint among those of `steps`; None if none of them was evaluated."""
    return best_of(_compared(store, criterion, steps)[0])


def steps_to_keep(store: Store, criterion: Criterion, steps: Iterable[int]) -> frozenset[int]:
    """Returns the step of the best checkpoint among those of `steps`, and the steps of which this is not known.

    It is not known for a checkpoint whose results or whose manifest cannot be read. It is kept, because it may be the
    best one. So a wrong answer of the store keeps more checkpoints and never fewer.
    """
    scored, unknown = _compared(store, criterion, steps)
    best = best_of(scored)
    return frozenset(unknown | ({best.step} if best else set[int]()))


def _compared(store: Store, criterion: Criterion, steps: Iterable[int]) -> tuple[list[ScoredStep], set[int]]:
    """Returns the scores of the checkpoints of `steps`, and the steps whose results or manifest cannot be read."""
    scored, unknown = list[ScoredStep](), set[int]()
    for step in steps:
        found = _results_of(store, step)
        if found is None:
            continue
        checkpoint = None if isinstance(found, Unreadable) else _checkpoint_of(store, step)
        if isinstance(found, Unreadable) or checkpoint is None:
            unknown.add(step)
        elif belong(found, checkpoint) and (each := criterion.of_stored(step, found)):
            scored.append(each)
    return scored, unknown


def _checkpoint_of(store: Store, step: int) -> Checkpoint | None:
    try:
        return read(store, step)
    except CheckpointError:  # Another version of this package wrote it.
        return None


def _results_of(store: Store, step: int) -> StepResults | Unreadable | None:
    """Returns the stored results at a step. Only several readings in a row find them absent or damaged."""
    found: StepResults | Unreadable | None = None
    for found in read_repeatedly(lambda: storage.read(store, file_of(step), STEP_RESULTS)):
        if isinstance(found, StepResults):
            break
    return found
