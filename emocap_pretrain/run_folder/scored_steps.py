"""Compares the evaluated checkpoints of a run by one score: which is the best, and does the score still improve?

Everything here is a pure function of scores. `checkpoint/best.py` reads the scores from the run's folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from emocap_pretrain.run_folder.results import Count, Finite, Score


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """Holds the score of one evaluated checkpoint.

    Args:
        step: The step of the checkpoint.
        task: The name of the task that measured the score.
        score: The score.
    """

    step: Count
    task: str
    score: Score

    @property
    def name(self) -> str:
        """Returns the name of the score as `checkpoint.keep_best` has it, which is TASK/SCORE."""
        return f"{self.task}/{self.score.name}"

    def text(self) -> str:
        """Returns the step and the score for a table, such as "step 400: prompted UAR 41.1%"."""
        return f"step {self.step}: {self.score.title} {self.score.text()}"


def best_of(scored: Sequence[ScoredStep]) -> ScoredStep | None:
    """Returns the checkpoint with the best score; the earliest of several equal ones, and None if there are none."""
    return max(scored, key=lambda each: (_goodness(each.score), -each.step), default=None)


def evaluations_without_improvement(scored: Sequence[ScoredStep], min_improvement: float = 0.0) -> int:
    """Returns how many evaluated checkpoints have come since the last one that improved the score.

    A checkpoint improves the score if it is better than the last improvement by more than `min_improvement`. The first
    evaluated checkpoint always counts as an improvement. So small improvements add up until they exceed the bound.
    """
    reference, count = -float("inf"), 0
    for each in sorted(scored, key=lambda each: each.step):
        improves = _goodness(each.score) - reference > min_improvement
        reference, count = (_goodness(each.score), 0) if improves else (reference, count + 1)
    return count


def _goodness(score: Score) -> float:
    return -score.value if score.lower_is_better else score.value


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """Says why a run ended before its last step: a score did not improve any more (`evaluation.stop_after`).

    Args:
        scored: The evaluated checkpoints that decided it, in ascending order of their steps.
        stop_after: The number of evaluated checkpoints in a row without an improvement that ended the run.
        min_improvement: By how much a score had to be better to count as an improvement.
        steps: The number of steps that the run would have made otherwise.
    """

    scored: tuple[ScoredStep, ...]
    stop_after: Count
    min_improvement: Finite
    steps: Count

    def holds(self, keep_best: str | None, stop_after: int | None, min_improvement: float) -> bool:
        """Returns whether the run would have ended here with these settings too. If not, it can be trained further."""
        if stop_after is None or not self.scored or self.scored[-1].name != keep_best:
            return False
        return evaluations_without_improvement(self.scored, min_improvement) >= stop_after

    def text(self) -> str:
        """Returns the reason for a table."""
        best = best_of(self.scored)
        since = f" since step {best.step}" if best else ""
        name = self.scored[-1].name if self.scored else "the score"
        count = evaluations_without_improvement(self.scored, self.min_improvement)
        return f"before step {self.steps}: {name} has not improved{since}, at {count} evaluated checkpoints in a row"
