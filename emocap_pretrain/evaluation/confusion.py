"""Counts predictions by true class, and computes the recalls that papers on facial emotion report.

WAR (weighted average recall) is the accuracy, and UAR (unweighted average recall) is the mean recall over the classes.
Some emotions occur much more often than others. So a model that always predicts the most frequent class can have a high
WAR, but its UAR is low. Both are reported, each next to the score of a model that ignores the image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from emocap_pretrain.run_folder.results import Baseline, ClassValues, ConfusionMatrix, Score

SCORES_FOLLOW = ": "
"""Divides the title of a matrix: the task comes before it, and the scores of the matrix after it."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Holds a confusion matrix: `counts[t, p]` samples of true class t were predicted as class p.

    Rows and columns are in the order of `classes`.
    """

    classes: tuple[str, ...]
    counts: Int[np.ndarray, "classes classes"]

    @classmethod
    def of(cls, classes: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> "Confusion":
        """Counts predictions. `truth` and `predicted` hold an index into `classes` for each sample.

        >>> Confusion.of(("joy", "fear"), np.array([0, 0, 1]), np.array([0, 1, 1])).counts.tolist()
        [[1, 1], [0, 1]]
        """
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        # `counts[truth, predicted] += 1` would count a pair only once, however often it occurs.
        np.add.at(counts, (truth, predicted), 1)
        return cls(classes, counts)

    def scores(self, task: str) -> tuple[Score, ...]:
        """Returns UAR and WAR, each with the score of a model that ignores the image. Titles begin with `task`."""
        chance = Baseline("chance", self.chance, f"{int((self.counts.sum(1) > 0).sum())} classes")
        return (
            Score("uar", f"{task} UAR", self.uar, chance),
            Score("war", f"{task} WAR", self.war, Baseline("majority class", self.majority)),
        )

    def recalls(self, task: str) -> ClassValues:
        """Returns the recall of each class, with a title that begins with `task`; None for a class without samples."""
        samples = tuple(map(int, self.counts.sum(1)))
        right = map(int, np.diag(self.counts))
        values = tuple(hits / count if count else None for hits, count in zip(right, samples, strict=True))
        return ClassValues("recall", f"{task} recall", self.classes, values, samples)

    def matrix(self, task: str) -> ConfusionMatrix:
        """Returns the counts in the form that a report stores. The title begins with `task` and states UAR and WAR."""
        title = f"{task}{SCORES_FOLLOW}UAR {self.uar:.1%} (chance {self.chance:.1%}), WAR {self.war:.1%}"
        counts = tuple(tuple(map(int, row)) for row in self.counts)
        return ConfusionMatrix("confusion", title, self.classes, counts)

    @property
    def war(self) -> float:
        """Returns the weighted average recall (accuracy): the share of samples whose class was predicted."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def uar(self) -> float:
        """Returns the unweighted average recall: the mean recall over the classes that have samples."""
        occurring = self.counts.sum(1) > 0
        return float((np.diag(self.counts)[occurring] / self.counts.sum(1)[occurring]).mean())

    @property
    def chance(self) -> float:
        """Returns the chance level of UAR: one over the number of classes that have samples.

        This is the expected UAR of random predictions of these classes that ignore the image, even if some classes are
        predicted more often than others.
        """
        return 1 / int((self.counts.sum(1) > 0).sum())

    @property
    def majority(self) -> float:
        """Returns the WAR (weighted average recall) of a model that always predicts the most frequent class."""
        return float(self.counts.sum(1).max() / self.counts.sum())
