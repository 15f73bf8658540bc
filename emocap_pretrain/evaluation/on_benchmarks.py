"""Runs evaluation tasks on copies of benchmarks, fold after fold."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from emocap_pretrain.benchmarks.card import Card
from emocap_pretrain.benchmarks.catalogue import card
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.evaluation.benchmark_source import settings_of, sources_of, splits_of
from emocap_pretrain.evaluation.features import Extraction
from emocap_pretrain.evaluation.task import Task
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.outcomes import Outcomes, Samples, joined
from emocap_pretrain.run_folder.results import Baseline, ConfusionMatrix, Score, TaskResult


@dataclass(frozen=True, slots=True)
class BenchmarkCopy:
    """Names a user's copy of a benchmark."""

    card: Card
    root: Path

    @classmethod
    def parsed(cls, text: str) -> "BenchmarkCopy":
        """Returns the copy that a text such as "raf_db=/data/RAF" names.

        Raises:
            ConfigError: If the text has another form, or there is no benchmark of this name.
        """
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise ConfigError(f"--benchmark {text}: give NAME=FOLDER, such as raf_db=/data/RAF.")
        return cls(card(name), Path(path).expanduser())


def prepare(copies: Sequence[BenchmarkCopy], settings: EvaluationConfig) -> None:
    """Checks that each copy has a known layout and allows a task, before a model is loaded. One rank calls it.

    Raises:
        ConfigError: If a copy has none of the layouts of its card, or allows none of the tasks, or a class has no
            prompts.
    """
    for copy in copies:
        fitting(copy.card, copy.root)
        for task in tasks_of(settings_of(settings, copy.card), copy.card):
            task.prompts()


def tasks_of(settings: EvaluationConfig, about: Card) -> list[Task]:
    """Returns the tasks that a benchmark allows: those for its target whose splits it has.

    If the settings name tasks, only those are returned. Tasks that need a head are returned only then.

    Raises:
        ConfigError: If the settings name no task that the benchmark allows.
    """
    splits = set(splits_of(about))
    every = tuple(each.name for each in tasks.TASKS if each not in tasks.NEED_A_HEAD)
    named = settings if settings.tasks else settings.model_copy(update={"tasks": every})
    found = [task for task in tasks.tasks_of(named) if about.target.kind in task.targets and set(task.splits) <= splits]
    if not found:
        raise ConfigError(
            f"benchmark {about.name}: none of the tasks can be run, because its target is of the kind "
            f"{about.target.kind!r} and its splits are {', '.join(about.splits)}."
        )
    return found


def evaluate(
    copies: Sequence[BenchmarkCopy], settings: EvaluationConfig, embedder: Embedder, world: RankGroup
) -> tuple[TaskResult, ...]:
    """Runs all tasks that each benchmark allows, and returns their results on every rank. This is a collective.

    If a benchmark has folds, each score is the mean over the folds, as publications report it.

    Args:
        copies: The copies, which every rank reads.
        settings: The prompts and the tasks; the labels are those of the cards.
        embedder: The trained model, on this rank's device.
        world: The ranks among which the data are divided.

    Raises:
        ConfigError: If no layout of a card fits its copy, or no task can be run.
        LostContact: If another rank has failed.
    """
    extraction = tasks.extraction(settings, embedder)
    return tuple(result for copy in copies for result in _on_copy(copy, settings, extraction, world))


def _on_copy(
    copy: BenchmarkCopy, settings: EvaluationConfig, extraction: Extraction, world: RankGroup
) -> list[TaskResult]:
    about = copy.card
    chosen = tasks_of(settings_of(settings, about), about)
    # Every rank looks at the copy; one on which it is missing or differs must not leave the others waiting.
    reader = world.run_on_all(lambda: fitting(about, copy.root)[1])[world.rank]
    folds = [None] if about.folds is None else list(range(1, about.folds + 1))
    found = [tasks.run(chosen, sources_of(about, copy.root, reader, fold), extraction, world) for fold in folds]
    means = [mean_of_folds(of_task) for of_task in zip(*found, strict=True)]
    return [replace(each, url=f"{about.name}, {about.scored}", benchmark=about.name) for each in means]


def mean_of_folds(results: Sequence[TaskResult]) -> TaskResult:
    """Returns one result whose scores are the means over folds; a single result as it is.

    The confusion matrices of the folds are added. The recalls of classes and the intervals of single folds are left
    out.
    """
    if len(results) == 1:
        return results[0]
    scores = [_mean(each) for each in zip(*(result.scores for result in results), strict=True)]
    matrices = [_sum(each) for each in zip(*(result.confusion_matrices for result in results), strict=True)]
    left_out = Counter[str]()
    for result in results:
        left_out.update(dict(result.left_out))
    return replace(
        results[0],
        samples=sum(result.samples for result in results),
        scores=tuple(scores),
        class_values=(),
        confusion_matrices=tuple(matrices),
        left_out=tuple(left_out.most_common()),
        series=(),
        outcomes=_joined(results),
        scored_samples=_samples(results),
        found=results[0].found,
    )


def _samples(results: Sequence[TaskResult]) -> Samples | None:
    """Returns the samples of all folds, fold after fold."""
    folds = [each.scored_samples for each in results if each.scored_samples]
    if len(folds) < len(results):
        return None
    groups = tuple(chain.from_iterable(each.groups or (None,) * len(each) for each in folds))
    return Samples(
        keys=tuple(chain.from_iterable(each.keys for each in folds)),
        groups=groups if any(group is not None for group in groups) else (),
        folds=tuple(number for number, each in enumerate(folds) for _ in each.keys),
        labels={name: tuple(chain.from_iterable(each.labels[name] for each in folds)) for name in folds[0].labels},
    )


def _joined(results: Sequence[TaskResult]) -> tuple[Outcomes, ...]:
    """Returns the outcomes of all folds, fold after fold, with the rows of `_samples`.

    Outcomes whose queries are not samples are left out, because nothing says to which fold they belong.
    """
    folds = [each.scored_samples for each in results if each.scored_samples]
    if len(folds) < len(results):
        return ()
    firsts = [0, *accumulate(map(len, folds))]
    found = zip(*(each.outcomes for each in results), strict=True)
    return tuple(
        joined(
            [
                replace(each, rows=tuple(first + row for row in each.rows))
                for first, each in zip(firsts, of_folds, strict=False)
            ]
        )
        for of_folds in found
        if of_folds[0].rows
    )


def _mean(scores: Sequence[Score]) -> Score:
    first = scores[0]
    baselines = [each.baseline for each in scores if each.baseline]
    baseline = None
    if baselines:
        mean = math.fsum(each.value for each in baselines) / len(baselines)
        baseline = Baseline(baselines[0].name, mean, f"mean of {len(scores)} folds")
    value = math.fsum(each.value for each in scores) / len(scores)
    return replace(first, value=value, baseline=baseline, interval=None)


def _sum(matrices: Sequence[ConfusionMatrix]) -> ConfusionMatrix:
    counts = np.sum([each.counts for each in matrices], axis=0)
    return replace(matrices[0], counts=tuple(tuple(map(int, row)) for row in counts))
