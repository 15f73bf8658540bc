"""Tests the reader of copies whose folders are classes: every file is an item or a problem."""

import os
from pathlib import Path

import pytest
from benchmark_trees import image, read, text

from emocap_pretrain.benchmarks.card import ClassTarget
from emocap_pretrain.benchmarks.item import FrameFiles
from emocap_pretrain.benchmarks.layouts import ClassFolders
from emocap_pretrain.benchmarks.reading.class_folders import ClassFoldersReader
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.errors import ConfigError, DataError

TARGET = ClassTarget(classes={"fear": ("fear",), "sadly fearful": ("sadly fearful",)}, source="unknown")


def reader(**changes: object) -> ClassFoldersReader:
    settings: dict[str, object] = {
        "about": "folders",
        "source": "unknown",
        "codes": {"1": "fear", "2": "sadly fearful"},
        "folders": {"train": "train", "test": "test"},
        "files": "*.jpg",
    }
    return ClassFoldersReader(ClassFolders.model_validate(settings | changes), TARGET)


def test_classes_with_numbers_from_one_are_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    for path in ("test/1/b10.jpg", "test/1/b9.jpg", "test/2/a.jpg", "train/1/c.jpg"):
        image(tmp_path / path)
    items, problems = read(reader(), tmp_path, "test")
    assert [(item.key, item.class_name) for item in items] == [
        ("test/1/b9.jpg", "fear"),
        ("test/1/b10.jpg", "fear"),
        ("test/2/a.jpg", "sadly fearful"),
    ]
    assert problems == []


@pytest.mark.parametrize("name", ["Sadly Fearful", "sadly_fearful", "SADLY-FEARFUL"])
def test_the_name_of_a_class_may_be_spelled_in_another_way(name: str, tmp_path: Path) -> None:
    image(tmp_path / "test" / name / "a.jpg")
    items, _ = read(reader(codes={"sadly fearful": "sadly fearful"}), tmp_path, "test")
    assert [item.class_name for item in items] == ["sadly fearful"]


def test_each_file_of_an_unknown_class_is_a_problem(tmp_path: Path) -> None:
    for path in ("test/1/a.jpg", "test/0/b.jpg", "test/0/c.jpg"):
        image(tmp_path / path)
    items, problems = read(reader(), tmp_path, "test")
    assert [item.key for item in items] == ["test/1/a.jpg"]
    assert problems == [Problem("unknown class code", "test/0/b.jpg"), Problem("unknown class code", "test/0/c.jpg")]


def test_an_empty_folder_of_an_unknown_class_is_a_problem_too(tmp_path: Path) -> None:
    image(tmp_path / "test/1/a.jpg")
    (tmp_path / "test/9").mkdir()
    assert [each.kind for each in read(reader(), tmp_path, "test")[1]] == ["unknown class code"]


def test_a_class_that_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    image(tmp_path / "test/7/a.jpg")
    _, problems = read(reader(left_out={"7": "contempt is not a class"}), tmp_path, "test")
    assert problems == [Problem("left out: contempt is not a class", "test/7/a.jpg")]


def test_files_that_are_not_images_are_reported_and_hidden_ones_are_not(tmp_path: Path) -> None:
    image(tmp_path / "test/1/a.JPG")
    for path in ("test/1/notes.txt", "test/read me.txt", "test/1/.DS_Store"):
        text(tmp_path / path, "")
    items, problems = read(reader(), tmp_path, "test")
    assert [item.key for item in items] == ["test/1/a.JPG"]
    assert [each.place for each in problems] == ["test/1/notes.txt", "test/read me.txt"]
    assert {each.kind for each in problems} == {"left out: its name does not fit the layout"}


def test_a_folder_that_is_a_link_out_of_the_copy_is_not_entered(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "copy/test").mkdir(parents=True)
    (tmp_path / "copy/test/1").symlink_to(tmp_path / "elsewhere")
    assert read(reader(), tmp_path / "copy", "test") == ([], [Problem("path leads out of the folder", "test/1")])


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    image(tmp_path / "test/1/a.jpg")
    os.mkfifo(tmp_path / "test/1/b.jpg")
    assert read(reader(), tmp_path, "test")[1] == [Problem("not a regular file", "test/1/b.jpg")]


def test_a_folder_of_frames_is_a_video_in_the_order_of_time(tmp_path: Path) -> None:
    for number in (10, 9):
        image(tmp_path / f"test/1/clip/{number}.png")
    (tmp_path / "test/1/empty").mkdir()
    items, problems = read(reader(files="*", frames="*.png"), tmp_path, "test")
    assert isinstance(items[0].media, FrameFiles)
    assert [path.name for path in items[0].media.paths] == ["9.png", "10.png"]
    assert problems == [Problem("no frames", "test/1/empty")]


def test_a_missing_split_is_an_error_and_another_split_is_enough_to_fit(tmp_path: Path) -> None:
    image(tmp_path / "test/1/a.jpg")
    assert reader().fits(tmp_path) is None
    with pytest.raises(DataError, match="train is missing"):
        read(reader(), tmp_path, "train")
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read(reader(), tmp_path, "dev")


def test_a_folder_without_the_codes_of_the_layout_does_not_fit(tmp_path: Path) -> None:
    assert reader().fits(tmp_path) == "train"
    image(tmp_path / "train/happy/a.jpg")
    assert reader().fits(tmp_path) == "train/1"


def test_codes_that_count_as_equal_must_not_name_two_classes() -> None:
    with pytest.raises(ConfigError, match="'01'"):
        reader(codes={"1": "fear", "01": "sadly fearful"})
