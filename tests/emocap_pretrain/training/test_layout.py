from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.training.state_layout import Layout, Slice, file_of

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    sizes = draw(st.lists(SIZES, min_size=1, max_size=3))
    groups = tuple(tuple((f"{g}.{n}", size) for n, size in enumerate(group)) for g, group in enumerate(sizes))
    return Layout(draw(st.integers(0, 3)), draw(st.integers(1, 9)), groups, draw(st.sampled_from(["adamw", "sgd"])))


def elements(slices: tuple[Slice, ...]) -> list[tuple[str, int]]:
    return [(each.name, number) for each in slices for number in range(each.offset, each.end)]


@given(layouts())
def test_the_slices_of_all_ranks_cover_every_element_once(layout: Layout) -> None:
    written = Counter(chain.from_iterable(elements(layout.slices(rank)) for rank in range(layout.ranks)))
    assert written == Counter((name, n) for name, size in chain.from_iterable(layout.groups) for n in range(size))


@given(layouts())
def test_a_rank_writes_what_it_holds_and_without_zero_an_even_share_of_it(layout: Layout) -> None:
    shares = [len(elements(layout.slices(rank))) for rank in range(layout.ranks)]
    for rank in range(layout.ranks):
        assert set(elements(layout.slices(rank))) <= set(elements(layout.held(rank)))
        if layout.zero_stage:
            assert layout.slices(rank) == layout.held(rank)
        else:
            assert len(elements(layout.held(rank))) == sum(size for _, size in chain.from_iterable(layout.groups))
            assert max(shares) - min(shares) <= 1


@given(layouts(), st.integers(0, 3), st.integers(1, 9), st.data())
def test_a_rank_reads_exactly_the_files_that_hold_a_part_of_what_it_needs(
    saved: Layout, stage: int, ranks: int, data: st.DataObject
) -> None:
    mine = replace(saved, zero_stage=stage, ranks=ranks)
    rank = data.draw(st.integers(0, ranks - 1))
    needed = set(elements(mine.held(rank)))
    holders = [saver for saver in range(saved.ranks) if needed & set(elements(saved.slices(saver)))]
    assert saved.files_for(mine, rank) == tuple(map(file_of, holders or [0]))


def test_stages_1_and_2_cut_a_group_into_even_shares_of_pairs_with_padding_at_the_end() -> None:
    layout = Layout(1, 2, ((("a", 3), ("b", 6)), (("c", 1),)))
    assert layout.tensors(0) == (((0, Slice("a", 0, 3)), (3, Slice("b", 0, 3))), ((0, Slice("c", 0, 1)),))
    assert layout.tensors(1) == (((0, Slice("b", 3, 3)),), ())


def test_stage_3_cuts_every_parameter_and_leaves_room_for_its_padding() -> None:
    layout = Layout(3, 2, ((("a", 3), ("b", 1), ("c", 4)),))
    assert layout.tensors(0) == (((0, Slice("a", 0, 2)), (2, Slice("b", 0, 1)), (3, Slice("c", 0, 2))),)
    assert layout.tensors(1) == (((0, Slice("a", 2, 1)), (3, Slice("c", 2, 2))),)


@given(layouts())
def test_a_layout_survives_json(layout: Layout) -> None:
    assert Layout.from_json(layout.to_json()) == layout


def test_parameters_that_differ_are_an_error_that_names_the_first() -> None:
    saved = Layout(1, 2, ((("a", 3), ("b", 6)),))
    with pytest.raises(CheckpointError, match="it has b with 6 elements where the model has b with 5 elements"):
        saved.files_for(replace(saved, groups=((("a", 3), ("b", 5)),)), 0)
    with pytest.raises(CheckpointError, match="it has no c where the model has c with 1 elements"):
        saved.files_for(replace(saved, groups=((("a", 3), ("b", 6), ("c", 1)),)), 0)


def test_another_optimizer_is_an_error_that_names_both() -> None:
    saved = Layout(1, 2, ((("a", 3),),))
    with pytest.raises(CheckpointError, match=r"state of adamw, and optimizer\.name is sgd: set optimizer\.name=adamw"):
        saved.files_for(replace(saved, optimizer="sgd"), 0)


def test_a_layout_of_version_0_1_0_is_adamw_s() -> None:
    layout = Layout(1, 2, ((("a", 3),),), "sgd")
    tree = layout.to_json()
    del tree["optimizer"]
    assert Layout.from_json(tree) == replace(layout, optimizer="adamw")


@pytest.mark.parametrize("tree", [{}, {"zero_stage": 1, "ranks": 2, "groups": [["a"]]}, {"zero_stage": None}])
def test_a_bad_layout_is_an_error_in_one_line(tree: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="another version of this package wrote it"):
        Layout.from_json(tree)
