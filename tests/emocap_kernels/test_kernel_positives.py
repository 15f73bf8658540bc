"""The rule of mined positives that both losses and all backends share."""

import pytest
import torch
from emocap_kernels import Mining
from emocap_kernels.positives import MinedLists, apply_treatment, mine_top_k
from hypothesis import given
from hypothesis import strategies as st

ROWS, COLUMNS = 6, 5
Lists = list[list[int]]


def lists_of(anchors: int, candidates: int) -> st.SearchStrategy[Lists]:
    """Draws two candidates for each anchor; -1 means none."""
    mined = st.lists(st.integers(-1, candidates - 1), min_size=2, max_size=2)
    return st.lists(mined, min_size=anchors, max_size=anchors)


@given(by_row=lists_of(4, COLUMNS), by_column=lists_of(COLUMNS, ROWS), top=st.integers(0, 4), left=st.integers(0, 5))
def test_lists_give_the_masks_of_any_rows_and_columns(by_row: Lists, by_column: Lists, top: int, left: int):
    # This rank holds rows 1 to 4 of 6.
    first = 1
    lists = MinedLists(torch.tensor(by_row), torch.tensor(by_column), first)
    row_mask, column_mask = lists.masks(slice(top, 4), slice(left, COLUMNS))
    assert row_mask.tolist() == [[column in by_row[row] for column in range(left, COLUMNS)] for row in range(top, 4)]
    assert column_mask.tolist() == [
        [row + first in by_column[column] for column in range(left, COLUMNS)] for row in range(top, 4)
    ]


@given(
    by_row=lists_of(7, COLUMNS),
    row_of=st.lists(st.integers(1, 4), min_size=7, max_size=7),
    top=st.integers(0, 4),
    left=st.integers(0, 5),
)
def test_a_row_mines_what_any_of_its_anchors_mined(by_row: Lists, row_of: list[int], top: int, left: int):
    lists = MinedLists(torch.tensor(by_row), torch.full((COLUMNS, 2), -1), 1, row_of=torch.tensor(row_of))
    row_mask, column_mask = lists.masks(slice(top, 4), slice(left, COLUMNS))
    pairs = {(row - 1, column) for row, mined in zip(row_of, by_row, strict=True) for column in mined}
    assert row_mask.tolist() == [[(row, column) in pairs for column in range(left, COLUMNS)] for row in range(top, 4)]
    assert not column_mask.any()


@pytest.mark.parametrize("height", [1, 2, 9])
def test_the_lists_of_blocks_are_those_of_the_whole(height: int):
    similarity = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    own = torch.arange(5) + 2
    blocks = [slice(start, min(start + height, 5)) for start in range(0, 5, height)]
    rule = Mining(threshold=0.1, top_k=3)
    found = mine_top_k(lambda rows: similarity[rows].clone(), own, blocks, rule, candidates=8)
    for anchor, mined in enumerate(found.tolist()):
        others = [column for column in range(8) if column != own[anchor]]
        nearest = sorted(others, key=lambda column: -float(similarity[anchor, column]))[:3]
        assert {each for each in mined if each >= 0} == {each for each in nearest if similarity[anchor, each] >= 0.1}


def test_known_positives_stay_positives_whatever_the_treatment():
    known, mined = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    attract = apply_treatment(known, mined, mined, Mining(threshold=0.0, treatment="attract"))
    ignore = apply_treatment(known, mined, mined, Mining(threshold=0.0, treatment="ignore"))
    assert attract.row_positive.tolist() == [[True, True, False]]
    assert ignore.row_positive.tolist() == [[True, False, False]]
    assert ignore.row_dropped is not None
    assert ignore.row_dropped.tolist() == [[False, True, False]]
