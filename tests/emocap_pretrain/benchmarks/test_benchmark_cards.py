"""Tests that every card can be read, and that the reader of every layout on it reads a tiny copy without a problem."""

from collections import Counter
from pathlib import Path

import pytest
from benchmark_trees import BUILDERS, build, label, read

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import Card, ClassTarget
from emocap_pretrain.benchmarks.layouts import Layout
from emocap_pretrain.benchmarks.reading.choice import fitting, reader_of
from emocap_pretrain.benchmarks.reading.labels import plain

LAYOUTS = [
    pytest.param(card, layout, id=f"{card.name}-{number}")
    for card in map(catalogue.card, catalogue.names())
    for number, layout in enumerate(card.layouts)
]


# The copies of benchmarks with videos, and with labels of frames, are written by hand in another file.
BY_HAND = Path(__file__).with_name("test_video_cards.py")
GENERATED = [each for each in LAYOUTS if each.values[0].media == "image" and each.values[1].kind in BUILDERS]


def test_every_card_has_tiny_copies() -> None:
    """A card whose copies are written by hand is named twice in the file `BY_HAND`.

    The first name is in the list of cards of this file, and the second one is where a copy is written.
    """
    generated = {each.values[0].name for each in GENERATED}
    by_hand = BY_HAND.read_text()
    assert [name for name in catalogue.names() if name not in generated and by_hand.count(f'"{name}"') < 2] == []


@pytest.mark.parametrize("name", catalogue.names())
def test_a_card_has_the_name_of_its_file(name: str) -> None:
    assert catalogue.card(name).name == name


@pytest.mark.parametrize("name", catalogue.names())
def test_the_classes_of_a_card_are_distinct_in_every_spelling(name: str) -> None:
    target = catalogue.card(name).target
    if isinstance(target, ClassTarget):
        assert len({plain(each) for each in target.classes}) == len(target.classes)
        words = [word for each in target.classes.values() for word in each]
        assert len({plain(word) for word in words}) == len(words)


@pytest.mark.parametrize("name", catalogue.names())
def test_the_sizes_of_classes_add_up_to_that_of_their_split(name: str) -> None:
    for split in catalogue.card(name).splits.values():
        if split.by_class:
            assert sum(split.by_class.values()) == split.samples


@pytest.mark.parametrize("name", catalogue.names())
def test_the_layouts_of_a_card_have_different_descriptions(name: str) -> None:
    abouts = [layout.about for layout in catalogue.card(name).layouts]
    assert len(set(abouts)) == len(abouts)


@pytest.mark.parametrize(("card", "layout"), LAYOUTS)
def test_every_class_has_a_code_in_every_layout(card: Card, layout: Layout) -> None:
    if isinstance(card.target, ClassTarget):
        assert set(layout.codes.values()) == set(card.target.classes)


@pytest.mark.parametrize(("card", "layout"), GENERATED)
def test_a_tiny_copy_of_every_layout_is_read_without_a_problem(card: Card, layout: Layout, tmp_path: Path) -> None:
    expected = build(card, layout, tmp_path)
    reader = reader_of(layout, card.target)
    assert reader.fits(tmp_path) is None
    assert set(expected) == set(card.splits)
    for split in card.splits:
        items, problems = read(reader, tmp_path, split)
        assert problems == []
        assert Counter(map(label, items)) == expected[split]
        assert len({item.key for item in items}) == len(items)


@pytest.mark.parametrize(("card", "layout"), GENERATED)
def test_the_layout_of_a_copy_is_recognized(card: Card, layout: Layout, tmp_path: Path) -> None:
    build(card, layout, tmp_path)
    assert fitting(card, tmp_path)[0] == layout
