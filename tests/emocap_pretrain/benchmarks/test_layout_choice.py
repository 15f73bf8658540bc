"""Tests that the first layout on the card that fits a copy is chosen, and that otherwise each says what is missing."""

from pathlib import Path
from typing import get_args

import pytest
from benchmark_trees import image, read, text

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.layouts import Layout
from emocap_pretrain.benchmarks.reading.choice import READERS, fitting
from emocap_pretrain.errors import ConfigError


def test_every_kind_of_layout_has_a_reader() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Layout)[0])}
    assert set(READERS) == kinds


def test_a_copy_of_another_benchmark_names_the_first_missing_path_of_each_layout(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg")
    with pytest.raises(ConfigError) as error:
        fitting(catalogue.card("sfew"), tmp_path)
    for part in (
        "is not a copy of SFEW 2.0",
        "Train/imgs is missing",
        "Train_Aligned_Faces is missing",
        "Train is missing",
    ):
        assert part in str(error.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none is not a folder"):
        fitting(catalogue.card("sfew"), tmp_path / "none")


def test_whole_photographs_are_told_apart_from_aligned_faces(tmp_path: Path) -> None:
    text(tmp_path / "EmoLabel/list_patition_label.txt", "test_1.jpg 1\n")
    image(tmp_path / "Image/original/test_1.jpg")
    layout, reader = fitting(catalogue.card("raf_db"), tmp_path)
    assert layout.about.endswith("whole photographs")
    assert [item.key for item in read(reader, tmp_path, "test")[0]] == ["Image/original/test_1.jpg"]


def test_folders_with_numbers_are_told_apart_from_folders_with_names(tmp_path: Path) -> None:
    image(tmp_path / "numbers/test/7/a.jpg")
    image(tmp_path / "names/test/Neutral/a.jpg")
    for folder in ("numbers", "names"):
        layout, reader = fitting(catalogue.card("raf_db"), tmp_path / folder)
        assert folder in layout.about
        assert [item.class_name for item in read(reader, tmp_path / folder, "test")[0]] == ["neutral"]


def test_a_copy_with_the_scored_split_alone_fits(tmp_path: Path) -> None:
    image(tmp_path / "valid/3/a.jpg")
    assert fitting(catalogue.card("affectnet_8"), tmp_path)[0].about.startswith("the folders train and valid")


def test_a_copy_without_the_scored_split_fits_so_that_the_missing_split_can_be_named(tmp_path: Path) -> None:
    image(tmp_path / "train/1/a.jpg")
    assert fitting(catalogue.card("affectnet_8"), tmp_path)[0].about.startswith("the folders train and val,")
