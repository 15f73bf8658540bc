import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.evaluation.confusion import Confusion

# 4 of joy (3 right, one called fear), 2 of fear (1 right, one called joy), none of anger.
COUNTED = Confusion.of(("joy", "fear", "anger"), np.array([0, 0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 0, 0]))


def test_rows_are_true_classes_and_columns_predicted_ones():
    assert COUNTED.counts.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert COUNTED.counts.sum() == 6


def test_recalls_are_those_counted_by_hand():
    assert COUNTED.war == pytest.approx(4 / 6)
    assert COUNTED.uar == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_chance_and_majority_are_of_the_classes_that_occur():
    assert COUNTED.chance == pytest.approx(1 / 2)
    assert COUNTED.majority == pytest.approx(4 / 6)


def test_a_prediction_that_never_occurs_as_truth_is_counted_as_wrong():
    matrix = Confusion.of(("a", "b"), np.array([0, 0]), np.array([0, 1]))
    assert (matrix.war, matrix.uar, matrix.chance) == (0.5, 0.5, 1)


@given(st.integers(1, 6), st.data())
def test_always_naming_one_class_has_the_uar_of_chance(classes, data):
    truth = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=30)))
    named = int(data.draw(st.sampled_from(truth.tolist())))
    matrix = Confusion.of(tuple(map(str, range(classes))), truth, np.full_like(truth, named))
    assert matrix.uar == pytest.approx(matrix.chance)
    assert matrix.war <= matrix.majority + 1e-12


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_a_perfect_prediction_has_recalls_of_one(truth):
    matrix = Confusion.of(tuple("abcde"), np.array(truth), np.array(truth))
    assert matrix.war == pytest.approx(1)
    assert matrix.uar == pytest.approx(1)
    assert matrix.counts.sum() == len(truth)
