"""Lists the evaluation tasks, and runs those that a run's settings name.

This is the only module that mentions a task by name, apart from the reader of old reports; a test checks that. The
training loop, the commands and the tracker call the functions of this module. The results of all tasks have the same
types (`run_folder/results.py`), so the callers need no code for a single task.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.explain import did_you_mean
from emocap_pretrain.config.model import PartLengthsConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.stored import filled
from emocap_pretrain.data.datasets import CutTexts
from emocap_pretrain.data.parts import PROMPT_PART
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.retrieval import Retrieval
from emocap_pretrain.evaluation.task import Task, run_task
from emocap_pretrain.evaluation.zero_shot import ZeroShot
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import TaskResult

# The order is that of `emocap evaluate --list` and of the charts in the tracker.
TASKS: tuple[type[Task[Any]], ...] = (ZeroShot, Retrieval)
DEFAULT = (ZeroShot,)  # The tasks if the settings name none.
PREPARE_S = 20.0  # Seconds for which each task may read before a start. The ranks read the rest before the first step.


def charts() -> tuple[tuple[str, ...], ...]:
    """Returns the charts of all tasks, in the order of the tasks. A chart is a tuple of the names of its metrics."""
    return tuple(tuple(f"{task.name}/{score}" for score in chart) for task in TASKS for chart in task.charts)


def tasks_of(settings: EvaluationConfig) -> list[Task[Any]]:
    """Returns the tasks that the settings name, constructed with these settings; the default tasks if they name none.

    Raises:
        ConfigError: If a name is not the name of a task, or is given twice.
    """
    known = {task.name: task for task in TASKS}
    names = [task.name for task in DEFAULT] if settings.tasks is None else settings.tasks
    for number, name in enumerate(names):
        if name not in known:
            raise ConfigError(f"evaluation.tasks: there is no task {name!r}{did_you_mean(name, tuple(known))}")
        if name in names[:number]:
            raise ConfigError(f"evaluation.tasks: {name} comes twice; name each task once.")
    return [known[name](settings) for name in names]


def prepare(settings: EvaluationConfig, *, seconds: float | None = None) -> list[str]:
    """Checks that the settings of every task fit the dataset, and returns notes for the user. One rank calls it.

    This function is called before training, so that a wrong label or class is reported before the first step and not
    after the last one.

    Args:
        settings: The evaluation settings. If they name no dataset, nothing is read.
        seconds: Each task may stop reading after this time; None reads everything.

    Raises:
        ConfigError: If a task's settings do not fit its data.
        ShardsError: If the data cannot be read.
    """
    tasks = tasks_of(settings)
    return [note for task in tasks for note in task.prepare(seconds=seconds)] if settings.url else []


def were_prepared(checkpoint: Checkpoint | None, evaluation: Mapping[str, Any]) -> bool:
    """Returns whether the newest checkpoint was saved with these evaluation settings.

    If so, the attempt that saved this checkpoint has checked the whole evaluation dataset, and a later attempt does not
    need to check the dataset again.

    Args:
        checkpoint: The newest checkpoint of the run; None if the run has no checkpoint.
        evaluation: The settings as they are stored (`Config.stored`).
    """
    before = checkpoint.state.get("config") if checkpoint else None
    settings = before.get("evaluation") if isinstance(before, dict) else None
    return isinstance(settings, dict) and filled(settings, EvaluationConfig) == evaluation


def evaluate(settings: EvaluationConfig, embedder: Embedder, world: RankGroup, *, url: str) -> tuple[TaskResult, ...]:
    """Runs the tasks that the settings name, one after the other, and returns the results on every rank.

    All ranks must call this function. The results do not depend on the number of ranks: if the devices and the number
    of threads are the same, all bits of the results are the same.

    Args:
        settings: The dataset, the tasks and their settings.
        embedder: The trained model, on this rank's device.
        world: The ranks among which the data are divided.
        url: Address of the dataset without secrets, for the results.
    """
    return tuple(replace(run_task(task, embedder, world), url=url) for task in tasks_of(settings))


def cut_prompts(settings: EvaluationConfig, tokenizer: Tokenizer, lengths: PartLengthsConfig) -> list[CutTexts]:
    """Counts the prompts of all tasks, and those that have more tokens than the text tower reads.

    Returns:
        A list with one `CutTexts` for the prompts of all tasks together; empty if there are no prompts.
    """
    texts = [prompt for task in tasks_of(settings) for prompt in task.prompts()]
    return [CutTexts.of("prompts", tokenizer, texts, lengths.by_part[PROMPT_PART.name])] if texts else []
