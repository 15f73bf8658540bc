"""Counts of (true class, predicted class) and the recalls that facial-emotion papers report."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from emocap_pretrain.run_folder.report import ZeroShot


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts[t, p]`: samples of true class t predicted as p; rows and columns in the order of `classes`."""

    classes: tuple[str, ...]
    counts: Int[np.ndarray, "classes classes"]

    @classmethod
    def of(cls, classes: tuple[str, ...], truth: np.ndarray, predicted: np.ndarray) -> "Confusion":
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(counts, (truth, predicted), 1)
        return cls(classes, counts)

    def result(self, url: str) -> ZeroShot:
        """What a report says of these counts, for the dataset at `url`."""
        counts = tuple(tuple(map(int, row)) for row in self.counts)
        return ZeroShot(url, self.classes, counts, self.uar, self.war, self.chance, self.majority)

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @property
    def war(self) -> float:
        """Weighted average recall: the share of samples that are right (accuracy)."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def uar(self) -> float:
        """Unweighted average recall: the mean over the classes that occur of the share that is right."""
        occurring = self.counts.sum(1) > 0
        return float((np.diag(self.counts)[occurring] / self.counts.sum(1)[occurring]).mean())

    @property
    def chance(self) -> float:
        """UAR of any guess that does not look: one over the number of classes that occur."""
        return 1 / int((self.counts.sum(1) > 0).sum())

    @property
    def majority(self) -> float:
        """WAR of always naming the most frequent class."""
        return float(self.counts.sum(1).max() / self.counts.sum())
