from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.run_folder.results import Score
from emocap_pretrain.run_folder.scored_steps import EarlyEnd, ScoredStep, best_of, evaluations_without_improvement


def scored(values: Sequence[float], *, lower: bool = True) -> list[ScoredStep]:
    """Returns evaluated checkpoints at the steps 10, 20, ... with these values of a score."""
    return [
        ScoredStep(10 * number, "task", Score("loss", "loss", value, is_share=False, lower_is_better=lower))
        for number, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("values", "lower", "step"),
    [([3.0, 1.0, 2.0], True, 20), ([3.0, 1.0, 2.0], False, 10), ([2.0, 1.0, 1.0], True, 20), ([5.0], True, 10)],
)
def test_the_best_checkpoint_is_the_earliest_of_those_with_the_best_value(
    values: list[float], lower: bool, step: int
) -> None:
    for order in (scored(values, lower=lower), scored(values, lower=lower)[::-1]):
        best = best_of(order)
        assert best is not None
        assert best.step == step


def test_without_an_evaluated_checkpoint_there_is_no_best_one() -> None:
    assert best_of([]) is None
    assert evaluations_without_improvement([]) == 0


@pytest.mark.parametrize(
    ("values", "least", "count"),
    [
        ([3.0], 0.0, 0),
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 2.0, 2.0, 2.5], 0.0, 2),  # An equal value is no improvement.
        ([3.0, 2.0, 2.5], 1.0, 2),  # Neither is one that is better by exactly the bound.
        ([3.0, 2.5, 2.0, 1.5], 1.0, 0),  # Small improvements add up.
        ([3.0, 2.5, 2.0, 1.5, 1.4], 1.0, 1),
    ],
)
def test_evaluations_are_counted_since_the_last_improvement_by_more_than_the_bound(
    values: list[float], least: float, count: int
) -> None:
    assert evaluations_without_improvement(scored(values), least) == count
    assert evaluations_without_improvement(scored([-each for each in values], lower=False), least) == count


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_without_a_bound_the_count_is_the_number_of_evaluations_after_the_best_one(values: list[int]) -> None:
    found = scored([float(each) for each in values])
    best = best_of(found)
    assert best is not None
    assert evaluations_without_improvement(found) == len(values) - best.step // 10


def test_an_early_end_holds_as_long_as_the_run_would_end_there() -> None:
    ended = EarlyEnd(tuple(scored([3.0, 1.0, 1.2, 1.1])), 2, 0.0, 100)
    assert ended.holds("task/loss", 2, 0.0)
    assert ended.holds("task/loss", 1, 0.5)
    assert not ended.holds("task/loss", 3, 0.0)
    assert ended.holds("task/loss", 3, 2.0)
    assert not ended.holds("task/loss", None, 0.0)
    assert not ended.holds("task/other", 2, 0.0)
    since = "task/loss has not improved since step 20, at 2 evaluated checkpoints in a row"
    assert ended.text() == f"before step 100: {since}"
