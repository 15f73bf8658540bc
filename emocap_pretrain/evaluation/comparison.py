"""Compares the results of several models: their scores side by side, and tests against the first model.

The results come from files (`result_file.py`) or from an evaluation in this process. The comparison is a plain value,
which the terminal, the JSON output and the HTML page show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.outcome_scores import folds_of, keys_of, metrics_of, with_intervals
from emocap_pretrain.evaluation.paired import Difference, differences, holm
from emocap_pretrain.evaluation.pairing import caveats, mismatches
from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile, SavedFace
from emocap_pretrain.evaluation.subgroups import LEAST, MOST_GROUPS, Subgroups, subgroups
from emocap_pretrain.run_folder.outcome_sums import LossOutcomes
from emocap_pretrain.run_folder.outcomes import Outcomes, ProbabilityOutcomes, ShotOutcomes
from emocap_pretrain.run_folder.results import Score, TaskResult
from emocap_pretrain.run_folder.samples import Samples

_ALIKE = ("crop", "colours", "ensemble")  # Settings that change what a model sees, or how its prompts count.
TOLERANCE = 1e-6  # Relative to the score; sums in another order differ by less.


@dataclass(frozen=True, slots=True)
class ModelResults:
    """Holds the results of one model.

    Attributes:
        model: The model.
        results: The results of its tasks.
        thumbnails: Small images of some samples, as JPEGs in base64, by the keys of the samples.
        faces: The attention maps of some of the samples that have a small image.
        evaluation: The settings of the evaluation; empty if they are unknown.
        missing: The benchmarks that the user has named and that have no result, each with the reason.
    """

    model: EvaluatedModel
    results: tuple[TaskResult, ...]
    thumbnails: Mapping[str, str] = field(default_factory=dict[str, str])
    faces: tuple[SavedFace, ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: ResultFile) -> "ModelResults":
        """Returns the results that a file contains."""
        return cls(file.model, file.results(), file.thumbnails, file.faces, file.evaluation, file.missing)

    def also_on(self, other: "ModelResults") -> "ModelResults | None":
        """Returns these results together with those of the same model on other datasets, or with its captions.

        The result is None if `other` is about another model by its digest, if both have a result of one task on one
        dataset, if they were evaluated with other settings of `_ALIKE`, or if they show different images under one key.
        The file of the scores of captions has no such settings.
        """
        places = {(each.benchmark, each.url, each.task) for each in self.results}
        if (
            self.model.digest != other.model.digest
            or not self.model.digest
            or any((each.benchmark, each.url, each.task) in places for each in other.results)
            or (bool(self.evaluation and other.evaluation) and self._alike() != other._alike())
            or any(self.thumbnails.get(key, image) != image for key, image in other.thumbnails.items())
        ):
            return None
        return replace(
            self,
            results=self.results + other.results,
            model=self.model if self.evaluation else other.model,
            thumbnails={**self.thumbnails, **other.thumbnails},
            faces=self.faces + other.faces,
            evaluation=self.evaluation or other.evaluation,
            missing=self.missing + other.missing,
        )

    def _alike(self) -> list[Any]:
        """Returns the values of `_ALIKE`. Files of earlier versions were made with the colours of the model."""
        return [self.evaluation.get(name, "as published" if name == "colours" else None) for name in _ALIKE]


def by_model(files: Sequence[ResultFile]) -> list[ModelResults]:
    """Returns the results of each model, in the order of the files.

    The files of one model on different datasets become one entry (`ModelResults.also_on`).
    """
    found: list[ModelResults] = []
    for each in map(ModelResults.of, files):
        for number, earlier in enumerate(found):
            if together := earlier.also_on(each):
                found[number] = together
                break
        else:
            found.append(each)
    return found


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Holds one score of all models.

    Attributes:
        scores: The score of each model; None if the model has none.
        differences: For each model its score minus the score of the first model. None for the first model, if one of
            the two has no such score, if their samples differ, or if the score does not follow from outcomes.
    """

    scores: tuple[Score | None, ...]
    differences: tuple[Difference | None, ...]

    @property
    def first(self) -> Score:
        """Returns the score of the first model that has one. Its name and its title hold for the whole row."""
        return next(each for each in self.scores if each)


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """Holds the results of one task on one dataset.

    Attributes:
        task: The name of the task.
        benchmark: The name of the benchmark; empty for a packed dataset.
        results: The result of each model; None if the model has no result of this task on this dataset.
        rows: The scores.
        refusals: For each model, the reasons why it cannot be compared with the first model: how their samples differ.
            Empty if the samples are equal, or if one of the two models has no result.
        remarks: For each model, other settings than those of the first model, which do not prevent a comparison.
        groups: For each model the result of `groups_by`: for each label, the scores of the groups of samples with the
            same value of the label. Empty for a model without a result.
    """

    task: str
    benchmark: str
    results: tuple[TaskResult | None, ...]
    rows: tuple[ScoreRow, ...]
    refusals: tuple[tuple[str, ...], ...]
    remarks: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[Subgroups, ...], ...]

    @property
    def place(self) -> str:
        """Returns the name of the benchmark, or the address of the dataset."""
        return self.benchmark or next(each.url for each in self.results if each)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds the models, and a comparison for each task and dataset on which at least one of them has a result."""

    models: tuple[ModelResults, ...]
    tasks: tuple[TaskComparison, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """Returns a short name of each model for tables: A, B and so on."""
        return tuple(chr(ord("A") + number) for number in range(len(self.models)))


MOST_MODELS = 12


def compare(
    models: Sequence[ModelResults],
    *,
    by: Sequence[str] | None = None,
    least: int = LEAST,
    most_entries: int | None = None,
) -> Comparison:
    """Compares models with the first one.

    Args:
        models: The results of each model; at least one model.
        by: Names of the labels by which samples are divided into groups; None takes all labels in the results.
        least: A group with fewer samples is not scored.
        most_entries: Outcomes with more entries get no further intervals; None computes all (`with_intervals`).

    Raises:
        ConfigError: If there are more than `MOST_MODELS` models, a stated score differs from the one that its outcomes
            give (`check`), no model has a label of `by`, or a label has too many values.
    """
    if len(models) > MOST_MODELS:
        raise ConfigError(f"{len(models)} models: at most {MOST_MODELS} can be compared at once.")
    for each in models:
        check(each)
    _check_labels(models, by)
    # Packed datasets are told apart by their addresses only where a model was evaluated on several of them: otherwise
    # copies of one dataset at two addresses could not be compared, and other samples would not be refused.
    with_address = any(_has_several_datasets(each.results) for each in models)
    found = [
        {
            (each.benchmark, each.task, each.url if with_address and not each.benchmark else ""): with_intervals(
                each, most=most_entries
            )
            for each in model.results
        }
        for model in models
    ]
    places = dict.fromkeys(place for each in found for place in each)
    settings = [each.evaluation for each in models]
    tasks = [
        _compared(benchmark, task, [each.get((benchmark, task, url)) for each in found], settings, by, least)
        for benchmark, task, url in places
    ]
    return Comparison(tuple(models), tuple(_corrected(tasks)))


def _has_several_datasets(results: Sequence[TaskResult]) -> bool:
    packed = {(each.task, each.url) for each in results if not each.benchmark}
    return len({task for task, _ in packed}) < len(packed)


def check(results: ModelResults) -> None:
    """Computes the scores again from the outcomes, and compares them with the scores that the results state.

    A stated score that does not follow from outcomes is not checked.

    Raises:
        ConfigError: If a score differs by more than `TOLERANCE`, relative to scores above 1.
    """
    for result in results.results:
        stated = {score.name: score.value for score in result.scores}
        for outcomes, samples in _outcomes(result):
            everything = np.ones((1, len(keys_of(outcomes, samples))))
            for name, metric in metrics_of(outcomes, folds_of(outcomes, samples)).items():
                value = float(metric(everything)[0])
                if name in stated and not abs(value - stated[name]) <= TOLERANCE * max(1, abs(value)):
                    raise ConfigError(
                        f"{results.model.title()}, {result.task}: the file states {name}={stated[name]:.6g}, and its "
                        f"outcomes give {value:.6g}: evaluate the model again."
                    )


def groups_by(result: TaskResult, by: Sequence[str] | None = None, *, least: int = LEAST) -> tuple[Subgroups, ...]:
    """Divides the samples of a result by each of their labels, and scores the groups with the same value.

    Each entry of `result.outcomes` is scored by the first of its scores that the result states.

    Args:
        result: The result of a task.
        by: Names of labels; None takes all labels that the samples have.
        least: A group with fewer samples is not scored.

    Returns:
        The groups of each entry of `result.outcomes` and each label. Entries whose queries are texts, and entries of
            which the result states no score, have no groups. Nor have means over draws of training examples, whose
            draws an interval of groups would leave out, calibration errors, which are larger in small groups, and
            losses, whose batches hold all groups.

    Raises:
        ConfigError: If a label has too many values.
    """
    found: list[Subgroups] = []
    for outcomes, samples in _outcomes(result):
        if isinstance(outcomes, ShotOutcomes | ProbabilityOutcomes | LossOutcomes):
            continue
        is_share = {score.name: score.is_share for score in result.scores}
        main = next((name for name in metrics_of(outcomes) if name in is_share), None)
        labels = [label for label in samples.labels if by is None or label in by]
        for label in labels if main and outcomes.rows else []:
            divided = subgroups(outcomes, samples, label, main or "", least=least)
            if divided is None:
                raise ConfigError(
                    f"--by {label}: it has more than {MOST_GROUPS} values; give a label with few, such as gender."
                )
            found.append(replace(divided, is_share=is_share[main or ""]))
    return tuple(found)


def _check_labels(models: Sequence[ModelResults], by: Sequence[str] | None) -> None:
    known = {
        label
        for each in models
        for result in each.results
        for label in (result.scored_samples.labels if result.scored_samples else ())
    }
    if missing := [label for label in by or () if label not in known]:
        there = f"they have {', '.join(sorted(known))}" if known else "they have none"
        raise ConfigError(
            f"--by {missing[0]}: the files do not contain this label of the samples, {there}; `emocap evaluate --by "
            f"{missing[0]} --save FILE.json` keeps it."
        )


def _outcomes(result: TaskResult) -> list[tuple[Outcomes, Samples]]:
    samples = result.scored_samples
    return [] if samples is None else [(outcomes, samples) for outcomes in result.outcomes]


def _compared(
    benchmark: str,
    task: str,
    results: Sequence[TaskResult | None],
    settings: Sequence[Mapping[str, Any]],
    by: Sequence[str] | None,
    least: int,
) -> TaskComparison:
    first = results[0]
    refusals = [() if each is None or first is None else _refusals(first, each) for each in results]
    remarks = [
        () if each is None or first is None else _remarks(first, each, settings[0], its)
        for each, its in zip(results, settings, strict=True)
    ]
    names = dict.fromkeys(score.name for each in results if each for score in each.scores)
    changes = [{} if refused else _changes(first, each) for each, refused in zip(results, refusals, strict=True)]
    rows = [_row(name, results, changes) for name in names]
    groups = tuple(groups_by(each, by, least=least) if each else () for each in results)
    return TaskComparison(task, benchmark, tuple(results), tuple(rows), tuple(refusals), tuple(remarks), groups)


def _refusals(first: TaskResult, other: TaskResult) -> tuple[str, ...]:
    """Returns why two results are not paired."""
    if first is other:
        return ()
    pairs = zip(_outcomes(first), _outcomes(other), strict=False)
    return tuple(dict.fromkeys(reason for one, another in pairs for reason in mismatches(one, another)))


def _remarks(
    first: TaskResult, other: TaskResult, settings: Mapping[str, Any], others: Mapping[str, Any]
) -> tuple[str, ...]:
    """Returns which settings of the evaluations differ, of those that change what a model sees or how prompts count.

    Other differences that do not prevent a comparison (`caveats`) follow.

    A pair of results may still be compared: the difference is then also one of these settings.
    """
    # The ensemble combines prompts. Files of earlier versions do not say which part of an image was read.
    relevant = _ALIKE if first.domain and other.domain else _ALIKE[:-1]
    values = [(name, settings.get(name), others.get(name)) for name in relevant]
    found = [f"evaluation.{name} is {two}, not {one}" for name, one, two in values if one and two and one != two]
    pairs = zip(first.outcomes, other.outcomes, strict=False)
    return (*found, *(each for one, another in pairs for each in caveats(one, another)))


def _row(name: str, results: Sequence[TaskResult | None], changes: Sequence[Mapping[str, Difference]]) -> ScoreRow:
    return ScoreRow(tuple(_score(name, each) for each in results), tuple(each.get(name) for each in changes))


def _changes(first: TaskResult | None, other: TaskResult | None) -> dict[str, Difference]:
    """Returns `other` minus `first` for each score that both results have and that follows from outcomes, by its name.

    The result is empty if `other` is the first model, or if one of the two models has no result.
    """
    if first is None or other is None or first is other:
        return {}
    names = {score.name for score in first.scores} & {score.name for score in other.scores}
    found: dict[str, Difference] = {}
    for one, another in zip(_outcomes(first), _outcomes(other), strict=False):
        found |= differences(one, another, names)
    return found


def _score(name: str, result: TaskResult | None) -> Score | None:
    return next((each for each in result.scores if each.name == name), None) if result else None


def _corrected(tasks: Sequence[TaskComparison]) -> list[TaskComparison]:
    """Returns the comparisons with `p_holm`: p after Holm's correction over all comparisons of the same score."""
    ps: dict[str, list[float]] = {}
    for each in tasks:
        for row in each.rows:
            ps.setdefault(row.first.name, []).extend(found.p for found in row.differences if found)
    corrected = {name: iter(holm(found)) for name, found in ps.items()}

    def row_of(row: ScoreRow) -> ScoreRow:
        of_score = corrected[row.first.name]
        return replace(
            row, differences=tuple(found and replace(found, p_holm=next(of_score)) for found in row.differences)
        )

    return [replace(each, rows=tuple(map(row_of, each.rows))) for each in tasks]
