"""Tests the reader of copies in which the names of files say the classes and the persons."""

import pytest
from video_trees import a_frame_folder, a_video_file

from emocap_pretrain.benchmarks.card import ClassTarget
from emocap_pretrain.benchmarks.item import FrameFiles, Item, VideoFile
from emocap_pretrain.benchmarks.layouts import FileNames
from emocap_pretrain.benchmarks.reading.file_names import FileNamesReader
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.benchmarks.reading.tree import Tree
from emocap_pretrain.errors import DataError

TARGET = ClassTarget(classes={"joy": ("joy",), "anger": ("anger",)}, source="unknown")


def a_layout(**changes):
    fields = {
        "about": "invented",
        "source": "unknown",
        "codes": {"01": "joy", "02": "anger"},
        "files": "Actor_*/*.mp4",
        "pattern": r"Actor_(?P<person>\d+)/(?P<class>\d+)-\d+\.mp4",
        "folds": (("1", "2"), ("3",)),
    }
    return FileNames(**fields | changes)


def read(root, layout, split="test", fold=None):
    found = list(FileNamesReader(layout, TARGET).items(root, split, fold))
    items = [each for each in found if isinstance(each, Item)]
    return items, [each for each in found if isinstance(each, Problem)]


@pytest.fixture
def copy(tmp_path):
    for actor, name in [("01", "01-1"), ("01", "02-1"), ("02", "02-1"), ("03", "01-1"), ("10", "01-1")]:
        a_video_file(tmp_path / f"Actor_{actor}" / f"{name}.mp4", count=1)
    return tmp_path


def test_the_persons_of_a_fold_are_its_test_split_and_all_others_its_train_split(copy):
    items, problems = read(copy, a_layout(), "test", 1)
    assert [(item.key, item.class_name, item.group) for item in items] == [
        ("Actor_01/01-1.mp4", "joy", "01"),
        ("Actor_01/02-1.mp4", "anger", "01"),
        ("Actor_02/02-1.mp4", "anger", "02"),
    ]
    assert items[0].media == VideoFile(copy / "Actor_01/01-1.mp4")
    assert problems == [Problem("left out: the person is in no fold", "Actor_10/01-1.mp4")]
    assert [item.group for item in read(copy, a_layout(), "train", 1)[0]] == ["03"]
    assert [item.group for item in read(copy, a_layout(), "test", 2)[0]] == ["03"]


def test_all_folds_and_splits_list_the_folders_once(copy, monkeypatch):
    listed = []
    names = Tree.names
    monkeypatch.setattr(Tree, "names", lambda tree, path, pattern: listed.append(path) or names(tree, path, pattern))
    reader = FileNamesReader(a_layout(), TARGET)
    found = [len(list(reader.items(copy, split, fold))) for split in ("train", "test") for fold in (1, 2)]
    assert found == [2, 4, 4, 2]
    assert listed == ["", "Actor_01", "Actor_02", "Actor_03", "Actor_10"]


def test_every_split_has_all_items_of_a_layout_without_folds(copy):
    layout = a_layout(folds=(), pattern=r"Actor_\d+/(?P<class>\d+)-\d+\.mp4")
    for split in ("all", "train"):
        items, problems = read(copy, layout, split)
        assert (len(items), problems, items[0].group) == (5, [], None)


def test_a_strange_name_and_an_unknown_code_are_problems(copy):
    a_video_file(copy / "Actor_01" / "joy.mp4", count=1)
    a_video_file(copy / "Actor_01" / "07-1.mp4", count=1)
    items, problems = read(copy, a_layout(), "test", 1)
    assert len(items) == 3
    assert {(each.kind, each.place) for each in problems} == {
        ("unknown class code", "Actor_01/07-1.mp4: '07'"),
        ("the name does not follow the pattern", "Actor_01/joy.mp4"),
        ("left out: the person is in no fold", "Actor_10/01-1.mp4"),
    }


def test_a_code_that_is_left_out_says_why(copy):
    layout = a_layout(codes={"02": "anger"}, left_out={"01": "joy is not scored"})
    assert ("left out: joy is not scored", "Actor_01/01-1.mp4") in {
        (each.kind, each.place) for each in read(copy, layout, "test", 1)[1]
    }


def test_a_video_may_be_a_folder_of_frames(tmp_path):
    a_frame_folder(tmp_path / "Actor_1" / "01-1", ["frame10.png", "frame9.png"])
    a_frame_folder(tmp_path / "Actor_1" / "01-2", [])
    layout = a_layout(
        files="Actor_*/*", pattern=r"Actor_(?P<person>\d+)/(?P<class>\d+)-\d+", frames="*.png", folds=(("1",), ("2",))
    )
    (item,), problems = read(tmp_path, layout, "test", 1)
    assert isinstance(item.media, FrameFiles)
    assert [path.name for path in item.media.paths] == ["frame9.png", "frame10.png"]
    assert problems == [Problem("no frames", "Actor_1/01-2")]


@pytest.mark.parametrize(
    ("split", "fold", "message"),
    [
        ("test", None, "folds 1 to 2"),
        ("test", 3, "no fold 3"),
        ("test", 0, "no fold 0"),
        ("validation", 1, "no split validation"),
    ],
)
def test_a_split_or_fold_that_the_layout_does_not_have_is_an_error(copy, split, fold, message):
    with pytest.raises(DataError, match=message):
        read(copy, a_layout(), split, fold)


def test_a_copy_without_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"has no file Actor_\*/\*\.mp4"):
        read(tmp_path, a_layout(), "test", 1)


def test_a_folder_fits_if_its_first_file_follows_the_pattern(copy, tmp_path_factory):
    reader = FileNamesReader(a_layout(), TARGET)
    assert reader.fits(copy) is None
    other = tmp_path_factory.mktemp("other")
    assert reader.fits(other) == "Actor_*/*.mp4"
    a_video_file(other / "Actor_1" / "a.mp4", count=1)
    assert reader.fits(other) == "Actor_*/*.mp4"
