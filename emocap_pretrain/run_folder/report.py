"""Defines the report of a finished run, as a value and as a table for the terminal.

A run is finished once `report.json` exists for its last step: no later attempt trains it again. The report holds
results in types that are the same for all evaluation tasks (`results.py`). So neither this module nor the readers of a
report have code for individual tasks (decision 25).
"""

from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter
from rich.table import Table

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.stored import filled
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.run_folder.results import (
    WEIGHTS_TITLES,
    Baseline,
    ClassValues,
    ConfusionMatrix,
    Count,
    Finite,
    OtherWeights,
    Score,
    Share,
    TaskResult,
    Weights,
    other_weights_rows,
)
from emocap_pretrain.run_folder.scored_steps import EarlyEnd, ScoredStep

LONGEST_NAME = 42  # Characters; longer names in a table may be wrapped.


@dataclass(frozen=True, slots=True)
class Report:
    """Holds `report.json`, the result of a finished run. It is the last file that rank 0 writes.

    Args:
        name: Name of the run.
        url: The run's folder.
        step: Number of optimizer steps that are done.
        seconds: Seconds of training, over all attempts.
        ranks: World size of the last attempt.
        samples_per_s: Samples per second over all ranks, as a mean over `seconds`.
        loss: The last loss; None if it was not finite.
        run_id: MLflow's id of the run.
        tracking_uri: Address of the MLflow server.
        results: The results of each evaluation task.
        evaluation: The evaluation settings that led to `results`; reports of version 0.1.0 do not have them.
        experiment_id: MLflow's id of the experiment; empty if MLflow was unreachable, or in reports of 0.1.0.
        weights: The weights that led to `results`.
        before_training: The results of the same tasks before the first step; empty if they were not measured.
        warm_start: The checkpoint of another run with whose weights this run began; None for any other run.
        other_weights: The results of the same model with other weights.
        best: The best evaluated checkpoint that exists, by the score of `checkpoint.keep_best`; None without this
            setting.
        early_end: Why the run ended before its last step; None if it has made all steps.
    """

    name: str
    url: str
    step: Count
    seconds: Finite
    ranks: Count
    samples_per_s: Finite
    loss: Finite | None = None
    run_id: str = ""
    tracking_uri: str = ""
    results: tuple[TaskResult, ...] = ()
    evaluation: dict[str, Any] | None = None
    experiment_id: str = ""
    weights: Weights = "raw"
    before_training: tuple[TaskResult, ...] = ()
    warm_start: Parent | None = None
    other_weights: tuple[OtherWeights, ...] = ()
    best: ScoredStep | None = None
    early_end: EarlyEnd | None = None

    def ends(self, steps: int, keep_best: str | None, stop_after: int | None, min_improvement: float) -> bool:
        """Returns whether nothing is left to train: all steps are made, or the run has ended early.

        A run that has ended early can be trained further with settings with which it would not have ended, such as a
        larger `stop_after`.

        Args:
            steps: The number of steps of the run.
            keep_best: The setting `checkpoint.keep_best`.
            stop_after: The setting `evaluation.stop_after`.
            min_improvement: The setting `evaluation.min_improvement`.
        """
        ended_early = self.early_end is not None and self.early_end.holds(keep_best, stop_after, min_improvement)
        return self.step >= steps or ended_early

    def evaluated_with(self, settings: dict[str, Any]) -> bool:
        """Returns whether `results` were computed with these evaluation settings.

        If the settings name no evaluation dataset (`url` is None), there is nothing to evaluate, and the result is
        True. If a user starts a finished run again and the result is False, the run is evaluated again.

        Args:
            settings: The section `evaluation` of `Config.stored`.
        """
        if settings["url"] is None:
            return True
        if not self.results:
            return False
        if self.evaluation is None:  # A report of version 0.1.0, which had no setting `tasks`.
            return settings["tasks"] is None and all(_fits(result, settings) for result in self.results)
        return same_evaluation(self.evaluation, settings)

    def table(self) -> Table:
        """Returns the report as a table of names and values for the terminal."""
        table, rows = Table(title=f"Run {self.name}", title_justify="left", show_header=False), _rows(self)
        # On a narrow terminal, long values are wrapped, and names only if they are long too.
        table.add_column(no_wrap=max(len(name) for name, _ in rows) <= LONGEST_NAME)
        table.add_column()
        for name, value in rows:
            table.add_row(name, value)
        return table

    def markdown(self) -> str:
        """Returns the report as a Markdown table with the same rows as `table`."""
        return "\n".join(f"| {name} | {value} |" for name, value in [("", self.name), ("---", "---"), *_rows(self)])


def same_evaluation(stored: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Returns whether stored evaluation settings lead to the same results as the settings of this version.

    Args:
        stored: The section `evaluation` as this or another version has stored it.
        settings: The section `evaluation` of `Config.stored`.
    """
    return _decisive(filled(stored, EvaluationConfig)) == _decisive(settings)


def _fits(result: TaskResult, settings: dict[str, Any]) -> bool:
    """Returns whether a result of version 0.1.0 was computed with the dataset and the classes of the settings.

    A report of version 0.1.0 records no other evaluation settings, so only these two are compared.
    """
    classes = settings["classes"]
    same_classes = not classes or all(each.classes == tuple(classes) for each in result.confusion_matrices)
    return result.url == settings["url"] and same_classes


def on_ranks(ranks: int) -> str:
    """Returns the number of ranks for a message, such as "on 2 ranks"."""
    return f"on {ranks} rank{'s' if ranks != 1 else ''}"


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the evaluation settings on which the results of a checkpoint depend.

    The others are left out: the number of samples in a batch (`batch`), which other steps are evaluated
    (`before_training`, `every_checkpoints`), when the run ends early (`stop_after`, `min_improvement`), and the labels
    whose values `emocap evaluate` scores separately (`by`).
    """
    others = ("batch", "before_training", "every_checkpoints", "stop_after", "min_improvement", "by")
    return {name: value for name, value in settings.items() if name not in others}


def _rows(report: Report) -> list[tuple[str, str]]:
    before = {(result.benchmark, result.task): result for result in report.before_training}
    rows = [
        ("steps", f"{report.step} {on_ranks(report.ranks)}"),
        ("training time", f"{report.seconds:.0f} s, {report.samples_per_s:.0f} samples/s"),
        ("last loss", "not finite" if report.loss is None else f"{report.loss:.3f}"),
    ]
    return [
        *(rows if report.step else [("steps", f"0 {on_ranks(report.ranks)}, the model before training")]),
        *([("scores", "before training → after training")] if before else []),
        *(row for result in report.results for row in result.rows(before.get((result.benchmark, result.task)))),
        *other_weights_rows(report.other_weights),
        *([("ended early", report.early_end.text())] if report.early_end else []),
        *(_best_rows(report.best, report.url) if report.best else []),
        *([("evaluated weights", WEIGHTS_TITLES[report.weights])] if report.weights != "raw" else []),
        *([("started from", report.warm_start.text())] if report.warm_start else []),
        ("run folder", report.url),
    ]


def _best_rows(best: ScoredStep, url: str) -> list[tuple[str, str]]:
    return [
        ("best checkpoint", best.text()),
        ("use it", f"emocap evaluate {url} --step {best.step}, or run:{url}@{best.step} as model.from"),
    ]


@dataclass(frozen=True, slots=True)
class _ZeroShot:
    """Holds the result of a classification by prompts as a report of schema 1 stored it, which had no other results."""

    url: str
    classes: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]
    uar: Share
    war: Share
    chance: Share
    majority: Share

    def result(self) -> TaskResult:
        sums = tuple(map(sum, self.counts))
        # `row[number]` raises IndexError if the matrix is not square; `with_results` turns that into a message.
        right = [row[number] for number, row in enumerate(self.counts)]
        recalls = tuple(hits / samples if samples else None for hits, samples in zip(right, sums, strict=True))
        chance = Baseline("chance", self.chance, f"{sum(map(bool, sums))} classes")
        return TaskResult(
            task="zero_shot",
            samples=sum(sums),
            scores=(
                Score("uar", "prompted UAR", self.uar, chance),
                Score("war", "prompted WAR", self.war, Baseline("majority class", self.majority)),
            ),
            class_values=(ClassValues("recall", "prompted recall", self.classes, recalls, sums),),
            confusion_matrices=(ConfusionMatrix("confusion", "Prompted", self.classes, self.counts),),
            url=self.url,
        )


def with_results(body: Any) -> Any:
    """Upgrades the body of a report from schema 1 to schema 2.

    A report of schema 1 has at most one result, which is that of a classification by prompts. A report of schema 2 has
    a list of results. A body that is not a mapping is returned unchanged.

    Raises:
        ValueError: If the result in the report of schema 1 cannot be read.
    """
    if not isinstance(body, dict):
        return body
    fields = cast("dict[str, Any]", body)
    found = TypeAdapter(_ZeroShot | None).validate_python(fields.get("zero_shot"))
    try:
        return {**fields, "results": [found.result()] if found else []}
    except IndexError as error:
        raise ValueError("zero_shot: its counts are not a square") from error
