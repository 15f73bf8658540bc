"""Runs evaluation tasks: all ranks compute the vectors that the tasks need, and rank 0 computes the scores.

`tasks.py` lists the tasks, and checks before a start that settings, data and model fit them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.inspecting.wording import counted
from emocap_shards.store import open_store

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.feature_cache import FeatureCache
from emocap_pretrain.evaluation.features import BatchFeatures, Extraction, Features, joined
from emocap_pretrain.evaluation.local_loss import local_loss
from emocap_pretrain.evaluation.outcome_scores import with_intervals
from emocap_pretrain.evaluation.task import LearningTask, LocalLossTask, SplitName, Task
from emocap_pretrain.evaluation.tasks import (
    NEED_A_HEAD,
    check_maps,
    evaluation_filter,
    require_head,
    sources_of,
    splits_of,
    tasks_of,
)
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.run_folder.samples import Samples

_log = logging.getLogger(__name__)

# Captions have counts of their own.
_LABELS: frozenset[TargetKind] = frozenset(("class", "numbers", "units", "question"))
BY_FILTER = "by the filter"
_NAMED = 3  # Number of examples without vectors that a warning names.


def evaluate(settings: EvaluationConfig, embedder: Embedder, world: RankGroup, *, url: str) -> tuple[TaskResult, ...]:
    """Runs the tasks that the settings name, and returns their results on every rank. This is a collective.

    All ranks compute vectors, and rank 0 computes the scores. The results do not depend on the number of ranks: if the
    devices and the number of threads are the same, all bits of the results are the same. A rank without batches waits
    for the others, so `world` should be a group with a long timeout (`RankGroup.patient`).

    If the work fails on a rank, that rank raises its own error, and each other rank one of the errors below.

    Args:
        settings: The datasets, the tasks and their settings.
        embedder: The trained model, on this rank's device.
        world: The ranks among which the data are divided.
        url: Address of the dataset without secrets, for the results.

    Raises:
        ConfigError: If the error of the failed rank is a `ConfigError`. The message is the same.
        LostContact: If the failed rank has raised any other error.
        StoreError: If the address of the cache is wrong (`extraction`), on all ranks.
    """
    tasks = tasks_of(settings)
    # Rank 0 reads the filter for all ranks: that reads all indexes of the dataset.
    filter_ = world.run_on_main(lambda: evaluation_filter(settings))
    sources = sources_of(settings, tasks, filter_)
    results = run(tasks, sources, extraction(settings, embedder), world, by=settings.by)
    with_bounds = world.run_on_main(lambda: tuple(map(with_intervals, results)))
    return tuple(_of_dataset(each, url, filter_) for each in with_bounds)


def _of_dataset(result: TaskResult, url: str, filter_: DatasetFilter | None) -> TaskResult:
    if filter_ is None:
        return replace(result, url=url)
    count = len(filter_.left_out)
    left_out = ((BY_FILTER, count), *result.left_out) if count else result.left_out
    return replace(result, url=url, left_out=left_out, filter_digest=filter_.digest)


def extraction(settings: EvaluationConfig, embedder: Embedder) -> Extraction:
    """Returns the object that computes the vectors of splits.

    If the settings name a cache, all weights of the model are read to compute the model's digest.

    Raises:
        StoreError: If the address of the cache is wrong (`open_store`).
    """
    cache = FeatureCache(open_store(settings.cache), embedder.digest()) if settings.cache else None
    # A part that the user chooses is read as a whole: nothing of it is cut off.
    resize = embedder.resize.without_margin() if settings.crop else embedder.resize
    return Extraction(embedder, settings.batch, cache=cache, crop=settings.crop or embedder.crop, resize=resize)


def run(
    tasks: Sequence[Task],
    sources: Mapping[SplitName, ExampleSource],
    extraction: Extraction,
    world: RankGroup,
    *,
    by: Sequence[str] = (),
) -> tuple[TaskResult, ...]:
    """Runs tasks on the given sources, and returns their results on every rank. This is a collective.

    Args:
        tasks: The tasks. All ranks must pass equal ones.
        sources: The examples of every split that a task needs; others are not read.
        extraction: Computes vectors with the trained model, on this rank's device.
        world: The ranks among which the data are divided.
        by: Labels of the scored samples that the results keep.

    Raises:
        ConfigError, LostContact: As `evaluate` does. All ranks also raise a `ConfigError` if the model lacks the head
            or the attention maps that a task needs.
    """
    if with_head := [task for task in tasks if isinstance(task, NEED_A_HEAD)]:
        require_head(with_head, extraction.embedder.model.labels)
    parts = tuple(dict.fromkeys(part for task in tasks for part in task.parts))
    with_maps = check_maps(tasks, extraction.crop, has_local=extraction.embedder.has_maps)
    needed = {split for task in tasks for split in task.splits}
    # The order of the splits is the same on all ranks.
    collected: dict[SplitName, list[BatchFeatures] | None] = {
        split: (replace(extraction, parts=parts, with_maps=with_maps) if split == "test" else extraction).collect(
            source, world
        )
        for split, source in sources.items()
        if split in needed
    }
    with_loss = next((task for task in tasks if isinstance(task, LocalLossTask)), None)
    local = with_loss and local_loss(
        extraction, sources["test"], collected["test"], world, most_rows=with_loss.settings.loss_batch
    )

    def results() -> tuple[TaskResult, ...]:
        features: dict[SplitName, Features] = {
            split: joined(batches or [], sources[split].address) for split, batches in collected.items()
        }
        features["test"] = replace(features["test"], local_loss=local)
        for split, each in features.items():
            if each.left_out:
                named = ", ".join(left.key for left in each.left_out[:_NAMED])
                count, why = counted(len(each.left_out), "example"), each.why()
                _log.warning("%s: %s left out: %s; first: %s", sources[split].address, count, why, named)
        left_out, samples = features["test"].reasons(), samples_of(features["test"], by)
        found = [task.result(extraction.embedder, splits_of(task, features)) for task in tasks]
        return tuple(
            replace(
                each,
                left_out=(*left_out, *_without_label(task, each.samples, features), *each.left_out),
                scored_samples=samples if each.outcomes else None,
            )
            for task, each in zip(tasks, found, strict=True)
        )

    return world.run_on_main(results)


def _without_label(task: Task, scored: int, features: Mapping[SplitName, Features]) -> Iterator[tuple[str, int]]:
    """Yields a reason and a number for each split in which examples lack the label that a task reads.

    Args:
        task: The task. One that reads no labels gives nothing.
        scored: Number of examples that it has scored.
        features: The examples of each split.
    """
    if not _LABELS & set(task.targets):
        return
    for split in task.splits:
        each, known = features[split], scored
        if split != "test":
            if not isinstance(task, LearningTask):
                continue
            known = task.count_labelled(each)
        if known < len(each):
            yield f"without the label{'' if split == 'test' else f', in {split}'}", len(each) - known


def samples_of(features: Features, by: Sequence[str]) -> Samples:
    """Returns the keys of the examples, their persons or clips, and their values of the labels that `by` names."""
    groups = features.groups if any(group is not None for group in features.groups) else ()
    labels = {name: tuple(_label(each.get(name)) for each in features.labels) for name in by}
    return Samples(features.keys, groups, labels=labels)


def _label(value: str | float | None) -> str | float | None:
    return None if value == "" else value
