"""The findings of an evaluation as plain values: named scores, values by class, confusion matrices.

Every task gives its findings in these types, so that the report, the tracker and the command line show a task's results
without knowing the task.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]

_NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")


@dataclass(frozen=True, slots=True)
class Baseline:
    """The score of a guess that does not look at the sample; `note` says more of it, such as the number of classes."""

    name: str
    value: Finite
    note: str = ""

    def text(self, *, is_share: bool) -> str:
        note = f": {self.note}" if self.note else ""
        return f"({self.name} {_number(self.value, is_share=is_share)}{note})"


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a task.

    Args:
        name: Its stable name, such as `uar`. In the tracker the task's name and a slash come before it.
        title: What a person reads; it names the task or the direction too.
        value: The number.
        baseline: What it has to be compared with, if there is such a thing.
        is_share: Whether it is a share of samples, which is shown in per cent.
    """

    name: str
    title: str
    value: Finite
    baseline: Baseline | None = None
    is_share: bool = True

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a score is called {self.name!r}; take lower-case letters, digits, _ and / between them")
        if not math.isfinite(self.value):
            raise ValueError(f"the score {self.name} is {self.value}, which is not a finite number")

    def text(self) -> str:
        """The number as a person reads it, beside its baseline."""
        number = _number(self.value, is_share=self.is_share)
        return f"{number}  {self.baseline.text(is_share=self.is_share)}" if self.baseline else number


@dataclass(frozen=True, slots=True)
class ClassValues:
    """One share for each class, such as its recall; None for a class that no sample has.

    `samples` are the samples of each class.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    values: tuple[Share | None, ...]
    samples: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """`counts[t][p]` are the samples of class t that were predicted as p; `title` is that of a picture of it."""

    name: str
    title: str
    classes: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The findings of one task on the `samples` of the dataset at `url` that it could use."""

    task: str
    samples: Count
    scores: tuple[Score, ...]
    class_values: tuple[ClassValues, ...] = ()
    confusion_matrices: tuple[ConfusionMatrix, ...] = ()
    url: str = ""

    def value(self, name: str) -> float:
        """The value of the score of this name.

        Raises:
            KeyError: If there is none.
        """
        return {score.name: score.value for score in self.scores}[name]

    def metrics(self) -> dict[str, float]:
        """The scores by the names that the tracker gives them."""
        return {f"{self.task}/{score.name}": score.value for score in self.scores}

    def rows(self) -> list[tuple[str, str]]:
        """Rows of a table: each score beside its baseline, and the data."""
        scores = [(score.title, score.text()) for score in self.scores]
        return [*scores, ("evaluated on", f"{self.samples} samples of {self.url}")]


def _number(value: float, *, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else f"{value:.4g}"
