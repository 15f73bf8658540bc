"""Defines the results of an evaluation as plain values: named scores, values by class, confusion matrices.

Every evaluation task returns its results in these types. The report, the tracker and the command line therefore need no
code for individual tasks (decision 25). `report.json` stores the values, and later versions must be able to read them:
`documents.py` says what a change of a field requires.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from emocap_shards.inspecting.wording import counted
from pydantic import Field

from emocap_pretrain.run_folder.outcomes import FoundExample, Outcomes
from emocap_pretrain.run_folder.samples import Number, Samples, check_lengths

# Types of fields. pydantic checks their bounds when a document is read, and not when a value is made in code.
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]  # JSON has neither NaN nor infinity.
Count = Annotated[int, Field(ge=0, le=1 << 53)]  # Up to 2**53, every integer is also a float64.

# The weights of a checkpoint: those of its step, their moving average, or the average of schedule-free AdamW.
# Each has its name in texts for the user.
Weights = Literal["raw", "ema", "schedule_free"]
WEIGHTS_TITLES: dict[Weights, str] = {
    "raw": "weights of the step",
    "ema": "moving average of the weights",
    "schedule_free": "average of schedule-free AdamW",
}

_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")
_OTHERS = re.compile(r"[^a-z0-9_]")


def average_of(stored: Any) -> Weights:
    """Returns which average of the weights a run with these stored settings keeps; "raw" if it keeps none."""
    settings = cast("dict[str, Any]", stored) if isinstance(stored, dict) else {}
    optimizer = settings.get("optimizer")
    if isinstance(optimizer, dict) and cast("dict[str, Any]", optimizer).get("name") == "schedule_free":
        return "schedule_free"
    return "ema" if settings.get("ema") is not None else "raw"


def metric_name(label: str) -> str:
    """Returns the name of a label of a dataset as a part of the names of scores, which allow fewer characters.

    >>> metric_name("Arousal (SAM)")
    'arousal__sam_'
    """
    return _OTHERS.sub("_", label.lower())


@dataclass(frozen=True, slots=True)
class Baseline:
    """Holds a score that needs no model, with which the score of a model is compared.

    Examples are the chance level and the score of always predicting the most frequent class. `note` may add a detail
    such as the number of classes.
    """

    name: str
    value: Number
    note: str = ""

    def text(self, *, is_share: bool) -> str:
        """Returns the baseline in parentheses, as the terminal shows it. If `is_share`, its value is in per cent."""
        note = f": {self.note}" if self.note else ""
        return f"({self.name} {_number(self.value, is_share=is_share)}{note})"


@dataclass(frozen=True, slots=True)
class Score:
    """Holds one number that a task has measured.

    Args:
        name: Stable name of the score, such as `uar`. In MLflow it follows the name of the task, as in `TASK/uar`.
        title: Name of the score on the terminal. It says to which task the score belongs.
        value: The number.
        baseline: The score that needs no model, for comparison; None if there is none.
        is_share: Whether the number is a fraction in [0, 1], which is shown in per cent.
        interval: The bounds of a 95 % confidence interval; None if there is none.
        lower_is_better: Whether a smaller number is a better one, as for a loss. It decides which checkpoint is the
            best one (`checkpoint.keep_best`).

    Raises:
        ValueError: If the name has characters that MLflow refuses, or the value is not finite.

    Example:
        Score("uar", "UAR", 0.411, Baseline("chance", 0.125, "8 classes"), interval=(0.37, 0.452)).text()
        # "41.1% [37.0, 45.2]  (chance 12.5%: 8 classes)"
    """

    name: str
    title: str
    value: Number
    baseline: Baseline | None = None
    is_share: bool = True
    interval: tuple[Number, Number] | None = None
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a score is called {self.name!r}; take lower-case letters, digits, _ and / between them")
        if not math.isfinite(self.value):
            raise ValueError(f"the score {self.name} is {self.value}, which is not a finite number")

    @property
    def marked_title(self) -> str:
        """Returns the title, followed by an arrow if a smaller number is a better one."""
        return f"{self.title} ↓" if self.lower_is_better else self.title

    def within(self, bounds: tuple[float, float]) -> "Score":
        """Returns the score with the bounds of its confidence interval; without one if a bound is not finite."""
        return replace(self, interval=bounds if all(map(math.isfinite, bounds)) else None)

    def text(self, before_training: float | None = None) -> str:
        """Returns the number as the terminal shows it, followed by its interval and its baseline.

        With the value of the same score before training, the text begins with this value and an arrow.
        """
        number = _number(self.value, is_share=self.is_share)
        if self.interval:
            low, high = (_number(bound, is_share=self.is_share).removesuffix("%") for bound in self.interval)
            number = f"{number} [{low}, {high}]"
        if before_training is not None:
            number = f"{_number(before_training, is_share=self.is_share)} → {number}"
        return f"{number}  {self.baseline.text(is_share=self.is_share)}" if self.baseline else number


@dataclass(frozen=True, slots=True)
class ClassValues:
    """Holds one fraction for each class, such as the recall. The value is None for a class without samples.

    `samples` is the number of samples of each class.

    Raises:
        ValueError: If the lengths differ.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    values: tuple[Share | None, ...]
    samples: tuple[Count, ...]

    def __post_init__(self) -> None:
        check_lengths(len(self.classes), values=self.values, samples=self.samples)


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Holds a confusion matrix: `counts[t][p]` samples of class t were predicted as class p.

    `title` is the title of its plot.

    Raises:
        ValueError: If there is no class, or `counts` does not have a row and a column for each class.
    """

    name: str
    title: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    counts: tuple[tuple[Count, ...], ...]

    def __post_init__(self) -> None:
        check_lengths(len(self.classes), counts=self.counts)
        for row in self.counts:
            check_lengths(len(self.classes), **{"a row of counts": row})


@dataclass(frozen=True, slots=True)
class Series:
    """Holds a score as a function of a number x, such as the number of training examples.

    Attributes:
        name: Name of the series, which no other series of the task has.
        title: Title of the curve.
        x_title: What `x` counts, for the axis.
        x: The numbers, in ascending order.
        values: The score at each x, a fraction in [0, 1].
        deviations: The standard deviation of the score at each x over repetitions.
        chance: The score of a model that ignores the image; None if it is unknown.

    Raises:
        ValueError: If the lengths differ.
    """

    name: str
    title: str
    x_title: str
    x: tuple[Number, ...]
    values: tuple[Share, ...]
    deviations: tuple[Share, ...]
    chance: Share | None = None

    def __post_init__(self) -> None:
        check_lengths(len(self.x), values=self.values, deviations=self.deviations)


@dataclass(frozen=True, slots=True)
class Domain:
    """Says whether training captions of a model came from the faces on which prompts were scored.

    `evaluation/domain.py` determines it from the addresses of datasets and from what the user says.

    Attributes:
        kind: "zero-shot" if no training caption came from these faces or their labels, "in domain" if some did, and
            "unknown" if it is not known.
        why: The reason in a few words.
        unseen: The classes whose words do not occur in the training captions; empty if the captions were not read. The
            model has never read the words of these classes, even if `kind` is "in domain".
    """

    kind: Literal["zero-shot", "in domain", "unknown"] = "unknown"
    why: str = ""
    unseen: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Returns rows for a table, as pairs of a name and a value: the kind with its reason, and the unseen classes.

        Without unseen classes there is only one row.
        """
        names = {"zero-shot": "zero-shot", "in domain": "prompted, in domain", "unknown": "prompted, domain unknown"}
        text = f"{names[self.kind]} ({self.why})" if self.why else names[self.kind]
        unseen = [("zero-shot classes", ", ".join(self.unseen))] if self.unseen else []
        return [("result is", text), *unseen]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Holds the results of one task on one dataset.

    Attributes:
        task: The name of the task.
        samples: Number of scored samples.
        scores: The scores. The first one is the main score. The spread of a score `s` over several choices, such as
            over prompts, is given as two further scores, whose names are `s_lowest_WORD` and `s_highest_WORD`.
        class_values: Values for each class, such as the recalls.
        confusion_matrices: The confusion matrices.
        url: The address of the dataset.
        benchmark: The name of the benchmark, if the dataset is a copy of one; otherwise empty.
        left_out: Pairs of a reason and the number of samples that have no result for this reason.
        domain: Whether the scores are zero-shot; None if the task has no prompts.
        series: Curves, such as over the number of training examples.
        filter_digest: The digest of the filter without whose samples and sentences the dataset was scored; empty if it
            was scored as a whole.
        outcomes: What was found for each sample. Like the next two attributes, it is not stored in documents, and not
            compared by `==`.
        scored_samples: The samples to which the rows of `outcomes` refer; None if there are no outcomes.
        found: Some queries with their closest candidates, as examples for readers.
    """

    task: str
    samples: Count
    scores: tuple[Score, ...]
    class_values: tuple[ClassValues, ...] = ()
    confusion_matrices: tuple[ConfusionMatrix, ...] = ()
    url: str = ""
    benchmark: str = ""
    left_out: tuple[tuple[str, Count], ...] = ()
    domain: Domain | None = None
    series: tuple[Series, ...] = ()
    filter_digest: Annotated[str, Field(max_length=64)] = ""
    outcomes: Annotated[tuple[Outcomes, ...], Field(exclude=True)] = field(default=(), compare=False, repr=False)
    scored_samples: Annotated[Samples | None, Field(exclude=True)] = field(default=None, compare=False, repr=False)
    found: Annotated[tuple[FoundExample, ...], Field(exclude=True)] = field(default=(), compare=False, repr=False)

    def scores_alone(self) -> "TaskResult":
        """Returns the result without `outcomes`, `scored_samples` and `found`, which describe single samples."""
        return replace(self, outcomes=(), scored_samples=None, found=())

    def metrics(self) -> dict[str, float]:
        """Returns the values of the scores by their names in MLflow: `TASK/uar` or `BENCHMARK/TASK/uar` for `uar`."""
        return {f"{self._prefix}/{score.name}": score.value for score in self.scores}

    def tags(self) -> dict[str, str]:
        """Returns the tags that MLflow stores beside the scores, such as `TASK/domain` or `BENCHMARK/TASK/domain`.

        A task without prompts has no domain, and a dataset that was scored as a whole has no `TASK/filter`.
        """
        domain = {f"{self._prefix}/domain": self.domain.kind} if self.domain else {}
        return domain | ({f"{self._prefix}/filter": self.filter_digest} if self.filter_digest else {})

    @property
    def _prefix(self) -> str:
        return f"{self.benchmark}/{self.task}" if self.benchmark else self.task

    def rows(self, before_training: "TaskResult | None" = None) -> list[tuple[str, str]]:
        """Returns the result as rows of a table, each of which is a pair of a name and a value.

        The order is: each score with its baseline; whether the scores are zero-shot, if the task has prompts; the
        classes without samples, if there are any; the dataset; its filter, if there is one; the samples that were left
        out, by the reason.

        Args:
            before_training: The result of the same task before training. If it is given, the row of a score shows its
                values before and after training.
        """
        before = {score.name: score.value for score in before_training.scores} if before_training else {}
        scores = [(score.marked_title, score.text(before.get(score.name))) for score in self.scores]
        left_out = [("left out", f"{count:,} x {reason}") for reason, count in self.left_out]
        domain = self.domain.rows() if self.domain else []
        values = self.class_values[0] if self.class_values else None
        absent = (
            [name for name, count in zip(values.classes, values.samples, strict=True) if not count] if values else []
        )
        without = [("without samples", ", ".join(absent))] if absent else []
        return [
            *scores,
            *domain,
            *without,
            ("evaluated on", f"{counted(self.samples, 'sample')} of {self.url}"),
            *([("filter", self.filter_digest[:16])] if self.filter_digest else []),
            *left_out,
        ]


@dataclass(frozen=True, slots=True)
class OtherWeights:
    """Holds the results of the trained model with other weights, which are shown beside the results of a checkpoint.

    Args:
        weights: The trained weights: those of the step, or their average.
        share: The share `a` of the trained weights in (1 - a) * start + a * trained; None if they are not interpolated.
        results: The scores of each task, without values by class and confusion matrices.
    """

    weights: Weights
    share: Share | None
    results: tuple[TaskResult, ...]

    def metrics(self) -> dict[str, float]:
        """Returns the scores by their names in MLflow, such as `raw/TASK/uar` or `interpolated_0.25/TASK/uar`."""
        prefix = self.weights if self.share is None else f"interpolated_{self.share:g}"
        named = (result.metrics() for result in self.results)
        return {f"{prefix}/{name}": value for each in named for name, value in each.items()}


@dataclass(frozen=True, slots=True)
class Curve:
    """Holds the main score of one task, which is its first one, for interpolations between start and training.

    `points` are pairs of a share of the trained weights and a score, in ascending order of the shares.
    """

    points: tuple[tuple[float, Score], ...]

    @property
    def title(self) -> str:
        return self.points[0][1].title

    def text(self) -> str:
        """Returns the points as the terminal shows them, such as "0: 12.5% · 0.5: 41.0% · 1: 40.0%"."""
        return " · ".join(f"{share:g}: {_number(each.value, is_share=each.is_share)}" for share, each in self.points)


def curves(other_weights: Sequence[OtherWeights]) -> list[Curve]:
    """Returns one curve for each task; empty if there is no interpolation."""
    by_share = sorted((each.share, each.results) for each in other_weights if each.share is not None)
    found = zip(*(results for _, results in by_share), strict=True)
    return [
        Curve(tuple((share, result.scores[0]) for (share, _), result in zip(by_share, of_task, strict=True)))
        for of_task in found
    ]


def other_weights_rows(other_weights: Sequence[OtherWeights]) -> list[tuple[str, str]]:
    """Returns the rows of a table: the main scores with weights that are not interpolated, and the curves."""
    named = [(each, each.results) for each in other_weights if each.share is None]
    rows = [
        (f"{result.scores[0].title}, {WEIGHTS_TITLES[each.weights]}", result.scores[0].text())
        for each, results in named
        for result in results
    ]
    return [*rows, *((f"{each.title} by share of training", each.text()) for each in curves(other_weights))]


def p_text(p: float) -> str:
    """Returns a p value as texts for users show it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(value: float, interval: tuple[float, float] | None = None, *, is_share: bool) -> str:
    """Returns the difference of two scores with its sign, in points if the scores are fractions, and its interval."""
    factor, form = (100, "+.1f") if is_share else (1, "+.3g")
    text = f"{factor * value:{form}}"
    return text if interval is None else f"{text} [{factor * interval[0]:{form}}, {factor * interval[1]:{form}}]"


def _number(value: float, *, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else f"{value:.4g}"
