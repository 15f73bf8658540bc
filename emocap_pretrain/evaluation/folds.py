"""Averages the results of the folds of a benchmark, as publications report them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from emocap_pretrain.evaluation.confusion import SCORES_FOLLOW
from emocap_pretrain.run_folder.outcomes import Outcomes, joined
from emocap_pretrain.run_folder.results import Baseline, ClassValues, ConfusionMatrix, Score, Series, TaskResult
from emocap_pretrain.run_folder.samples import Samples


def mean_of_folds(results: Sequence[TaskResult]) -> TaskResult:
    """Returns one result for all folds, whose scores are the means over the folds; a single result as it is.

    A score that one of the folds lacks is left out. The confusion matrices are added, and their title states the mean
    scores. A value of a class is the mean over the folds that have samples of the class. Numbers of samples are added,
    and outcomes are joined. The examples of queries are those of the first fold. The points of a curve are the means
    over the folds, and so are their deviations. The intervals of single folds are left out.
    """
    if len(results) == 1:
        return results[0]
    of_folds = [{score.name: score for score in result.scores} for result in results]
    # AUC exists only in folds in which exactly two classes occur.
    common = [name for name in of_folds[0] if all(name in each for each in of_folds)]
    scores = [_mean([each[name] for each in of_folds]) for name in common]
    matrices = [_sum(each, scores) for each in zip(*(result.confusion_matrices for result in results), strict=True)]
    of_classes = [_mean_of_classes(each) for each in zip(*(result.class_values for result in results), strict=True)]
    left_out = Counter[str]()
    for result in results:
        left_out.update(dict(result.left_out))
    return replace(
        results[0],
        samples=sum(result.samples for result in results),
        scores=tuple(scores),
        class_values=tuple(of_classes),
        confusion_matrices=tuple(matrices),
        left_out=tuple(left_out.most_common()),
        series=tuple(map(_mean_of_series, zip(*(result.series for result in results), strict=True))),
        outcomes=_joined(results),
        scored_samples=_samples(results),
        found=results[0].found,
    )


def _samples(results: Sequence[TaskResult]) -> Samples | None:
    """Returns the samples of all folds, fold after fold; None if a fold has none."""
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
    """Returns the outcomes of all folds, fold after fold. Their rows refer to the samples that `_samples` returns.

    Outcomes whose queries are texts are left out, because a text does not say to which fold it belongs.
    """
    folds = [each.scored_samples for each in results if each.scored_samples]
    if len(folds) < len(results):
        return ()
    firsts = [0, *accumulate(map(len, folds))]
    # A fold with many samples lacks the probabilities, which come last.
    found = zip(*(each.outcomes for each in results), strict=False)
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


def _mean_of_series(folds: Sequence[Series]) -> Series:
    def mean(columns: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(math.fsum(each) / len(each) for each in zip(*columns, strict=True))

    chances = [each.chance for each in folds if each.chance is not None]
    return replace(
        folds[0],
        title=f"{folds[0].title}, mean of {len(folds)} folds",
        values=mean([each.values for each in folds]),
        deviations=mean([each.deviations for each in folds]),
        chance=math.fsum(chances) / len(chances) if chances else None,
    )


def _sum(matrices: Sequence[ConfusionMatrix], scores: Sequence[Score]) -> ConfusionMatrix:
    """Returns the sum of the matrices of the folds.

    The title states the mean scores of the folds. The UAR of the summed counts is another number, and that of the first
    fold belongs to its samples alone.
    """
    counts = np.sum([each.counts for each in matrices], axis=0)
    title = f"{matrices[0].title.partition(SCORES_FOLLOW)[0]}, {len(matrices)} folds"
    by_name = {score.name: score for score in scores}
    means: list[str] = []
    for name in ("uar", "war"):
        if score := by_name.get(name):
            is_chance = score.baseline is not None and score.baseline.name == "chance"
            chance = f" (chance {score.baseline.value:.1%})" if score.baseline and is_chance else ""
            means.append(f"mean {name.upper()} {score.value:.1%}{chance}")
    title = f"{title}{SCORES_FOLLOW}{', '.join(means)}" if means else title
    return replace(matrices[0], title=title, counts=tuple(tuple(map(int, row)) for row in counts))


def _mean_of_classes(folds: Sequence[ClassValues]) -> ClassValues:
    """Returns for each class the mean over the folds in which it has a value, and its samples in all folds."""
    first = folds[0]
    by_class = {
        name: [
            value
            for each in folds
            if (value := dict(zip(each.classes, each.values, strict=True)).get(name)) is not None
        ]
        for name in dict.fromkeys(name for each in folds for name in each.classes)
    }
    samples = Counter[str]()
    for each in folds:
        samples.update(dict(zip(each.classes, each.samples, strict=True)))
    return ClassValues(
        first.name,
        f"{first.title}, mean of folds",
        tuple(by_class),
        tuple(math.fsum(values) / len(values) if values else None for values in by_class.values()),
        tuple(samples[name] for name in by_class),
    )
