"""Tests how items are divided into parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.bulk.parts import PART_WEIGHT, cut

WEIGHTS = st.lists(st.integers(1, 200), max_size=300)


@given(WEIGHTS, st.integers(1, 500))
def test_parts_cover_all_items_in_order_and_none_twice(weights, most):
    parts = list(cut(weights, most))
    assert [item for part in parts for item in range(part.start, part.stop)] == list(range(len(weights)))
    assert [part.number for part in parts] == list(range(len(parts)))


@given(WEIGHTS, st.integers(1, 500))
def test_a_part_ends_with_the_item_that_fills_it(weights, most):
    parts = list(cut(weights, most))
    for part in parts:
        own = weights[part.start : part.stop]
        assert part.weight == sum(own)
        assert sum(own[:-1]) < most
    assert all(part.weight >= most for part in parts[:-1])


@given(WEIGHTS, WEIGHTS, st.integers(1, 500))
def test_the_parts_before_an_item_do_not_depend_on_the_items_after_it(before, after, most):
    alone = list(cut(before, most))
    finished = alone[:-1]
    assert list(cut(before + after, most))[: len(finished)] == finished


@pytest.mark.parametrize("count", [1, PART_WEIGHT, PART_WEIGHT + 1])
def test_images_fill_parts_by_their_number(count):
    assert len(list(cut([1] * count, PART_WEIGHT))) == -(-count // PART_WEIGHT)
