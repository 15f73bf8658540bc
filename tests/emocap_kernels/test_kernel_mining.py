import math

import pytest
import torch
from emocap_kernels import Mining
from emocap_kernels.errors import ArgumentError
from emocap_kernels.mining import first_duplicates, top_k_indices
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "no rule"),
        ({"guide": "text", "treatment": "ignore"}, "no rule"),
        ({"guide": "audio", "top_k": 1}, "guide='audio'"),
        ({"treatment": "repel", "top_k": 1}, "treatment='repel'"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": -3}, "top_k=-3"),
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"top_k": True}, "top_k=True"),
        ({"threshold": 1.01}, "threshold=1.01"),
        ({"threshold": -1.01}, "threshold=-1.01"),
        ({"threshold": math.nan}, "threshold=nan"),
    ],
)
def test_a_wrong_rule_raises_an_error_with_its_value(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        Mining(**wrong)
    assert isinstance(caught.value, ArgumentError)


def test_a_threshold_may_be_minus_one_or_one():
    assert Mining(threshold=-1.0).threshold == -1.0
    assert Mining(threshold=1.0, top_k=1).guide == "counterpart"


def test_a_rule_is_a_frozen_value():
    rule = Mining(top_k=2)
    assert rule == Mining(top_k=2)
    with pytest.raises(AttributeError):
        rule.top_k = 3  # pyright: ignore[reportAttributeAccessIssue]


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 12),
    top_k=st.integers(1, 14),
    levels=st.integers(1, 4),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_the_top_k_are_those_of_a_stable_sort(rows, columns, top_k, levels, data: DataObject):
    cells = st.lists(st.integers(0, levels), min_size=columns, max_size=columns)
    values = data.draw(st.lists(cells, min_size=rows, max_size=rows))
    own = data.draw(st.lists(st.integers(0, columns - 1), min_size=rows, max_size=rows))
    found = top_k_indices(torch.tensor(values, dtype=torch.float32), torch.tensor(own), top_k)
    for row, itself, indices in zip(values, own, found.tolist(), strict=True):
        others = [column for column in range(columns) if column != itself]
        assert indices == sorted(sorted(others, key=lambda column: (-row[column], column))[:top_k])


def test_nan_ranks_last_together_with_the_own_pair_and_changes_no_count():
    nan = float("nan")
    similarity = torch.tensor([[0.1, nan, 0.3, 0.2], [nan, 0.1, nan, 0.2]])
    assert top_k_indices(similarity, torch.tensor([0, 1]), 2).tolist() == [[2, 3], [0, 3]]
    assert top_k_indices(torch.full((2, 5), nan), torch.tensor([0, 3]), 2).tolist() == [[0, 1], [0, 1]]


@given(rows=st.integers(1, 20), width=st.integers(1, 5), levels=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_the_first_duplicate_is_the_lowest_index_of_an_equal_vector(rows, width, levels, seed):
    source = torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, torch.float64):
        vectors = torch.randint(-levels, levels, (rows, width), generator=source).to(dtype)
        listed = vectors.tolist()
        expected = [listed.index(vector) for vector in listed]
        duplicates = first_duplicates(vectors)
        assert (list(range(rows)) if duplicates is None else duplicates.tolist()) == expected


def test_zero_and_minus_zero_are_duplicates_and_permutations_are_not():
    duplicates = first_duplicates(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
    assert duplicates is not None
    assert duplicates.tolist() == [0, 0, 2]
    assert first_duplicates(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0]])) is None
