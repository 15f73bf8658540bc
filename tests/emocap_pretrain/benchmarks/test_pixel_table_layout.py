"""Tests the reader of copies of FER2013, whose images are cells of a table, with and without the votes of FER+."""

from pathlib import Path

import numpy as np
import pytest
from benchmark_trees import read, text

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.errors import ConfigError, DataError

GREY = " ".join(["7"] * 48 * 48)
VOTES = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"


def fer2013(root: Path, rows: str, header: str = "emotion,pixels,Usage\n") -> LayoutReader:
    text(root / "fer2013.csv", header + rows)
    return fitting(catalogue.card("fer2013"), root)[1]


def ferplus(root: Path, rows: str, votes: str) -> LayoutReader:
    text(root / "fer2013.csv", "emotion,pixels,Usage\n" + rows)
    text(root / "fer2013new.csv", VOTES + votes)
    return fitting(catalogue.card("ferplus"), root)[1]


def test_the_pixels_of_a_row_are_the_image_of_its_item(tmp_path: Path) -> None:
    pixels = " ".join(str(number % 256) for number in range(48 * 48))
    reader = fer2013(tmp_path, f"3,{pixels},PrivateTest\n6,{GREY},Training\n")
    items, problems = read(reader, tmp_path, "test")
    assert [(item.key, item.class_name) for item in items] == [("fer2013.csv:2", "happiness")]
    assert isinstance(items[0].media, np.ndarray)
    np.testing.assert_array_equal(items[0].media.ravel(), np.arange(48 * 48) % 256)
    assert problems == []


@pytest.mark.parametrize("blank", [" ", "  ", "\t"])
def test_numbers_between_other_blanks_are_read_as_well(blank: str, tmp_path: Path) -> None:
    """Only numbers with single spaces between them are parsed with NumPy; other texts take a slower path."""
    numbers = np.random.default_rng(0).integers(0, 256, 48 * 48)
    reader = fer2013(tmp_path, f"3,{blank.join(map(str, numbers))},PrivateTest\n")
    ((item,), _) = read(reader, tmp_path, "test")
    assert isinstance(item.media, np.ndarray)
    np.testing.assert_array_equal(item.media.ravel(), numbers)


def test_the_columns_are_found_by_their_names(tmp_path: Path) -> None:
    reader = fer2013(tmp_path, f"PrivateTest,0,{GREY}\n", header="Usage, emotion, pixels\n")
    assert [item.class_name for item in read(reader, tmp_path, "test")[0]] == ["anger"]


@pytest.mark.parametrize("pixels", ["1 2 3", GREY + " 7", GREY[:-1] + "256", GREY[:-1] + "1007", GREY[:-1] + "x", ""])
def test_pixels_that_are_not_an_image_are_a_problem(pixels: str, tmp_path: Path) -> None:
    reader = fer2013(tmp_path, f"0,{pixels},PrivateTest\n")
    assert read(reader, tmp_path, "test")[1] == [Problem("the pixels are not an image", "fer2013.csv:2")]


def test_an_unknown_class_is_a_problem_and_an_unknown_usage_is_one_of_the_first_split(tmp_path: Path) -> None:
    reader = fer2013(tmp_path, f"7,{GREY},PrivateTest\n0,{GREY},Other\n")
    kinds = {split: [each.kind for each in read(reader, tmp_path, split)[1]] for split in ("train", "val", "test")}
    assert kinds == {"train": ["unknown split"], "val": [], "test": ["unknown class code"]}


def test_the_votes_belong_to_the_row_and_not_to_the_number_in_the_name(tmp_path: Path) -> None:
    rows = f"0,{GREY},PrivateTest\n0,{GREY},PrivateTest\n0,{GREY},PrivateTest\n0,{GREY},PrivateTest\n"
    votes = (
        "PrivateTest,,0,0,0,0,0,0,0,0,0,10\n"
        "PrivateTest,fer0000000.png,0,0,0,0,0,0,9,1,0,0\n"
        "PrivateTest,fer0000001.png,5,5,0,0,0,0,0,0,0,0\n"
        "PrivateTest,fer0000002.png,0,2,0,0,0,0,0,0,8,0\n"
    )
    items, problems = read(ferplus(tmp_path, rows, votes), tmp_path, "test")
    assert [(item.key, item.class_name) for item in items] == [("fer2013.csv:3", "fear")]
    assert [problem.kind for problem in problems] == [
        "left out: no face",
        "left out: no class has enough votes",
        "left out: the expression is unknown",
    ]


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ("Training,a,9,0,0,0,0,0,0,0,0,0\n", "are of different usages, so the tables do not belong together"),
        ("", "have different numbers of rows"),
        ("PrivateTest,a,9\n", "has 3 cells, but the header has 12"),
    ],
)
def test_tables_that_do_not_belong_together_are_an_error(votes: str, message: str, tmp_path: Path) -> None:
    reader = ferplus(tmp_path, f"0,{GREY},PrivateTest\n", votes)
    with pytest.raises(DataError, match=message):
        read(reader, tmp_path, "test")


def test_a_table_without_its_columns_is_an_error(tmp_path: Path) -> None:
    reader = fer2013(tmp_path, "", header="emotion,image\n")
    with pytest.raises(DataError, match="no column 'pixels'; its first row is 'emotion, image'"):
        read(reader, tmp_path, "test")


def test_a_copy_without_the_votes_does_not_fit_and_the_missing_file_is_named(tmp_path: Path) -> None:
    text(tmp_path / "fer2013.csv", "emotion,pixels,Usage\n")
    with pytest.raises(ConfigError, match=r"fer2013new\.csv is missing"):
        fitting(catalogue.card("ferplus"), tmp_path)
