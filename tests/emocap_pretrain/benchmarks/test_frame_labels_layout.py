"""Tests the reader of copies in which every frame of a video has a label."""

import orjson
import pytest
from video_trees import a_frame_folder, a_text

from emocap_pretrain.benchmarks.card import ClassTarget, NumbersTarget, UnitsTarget
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.layouts import FrameLabels
from emocap_pretrain.benchmarks.reading.frame_labels import FrameLabelsReader
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.errors import ConfigError, DataError

EXPRESSIONS = ClassTarget(classes={"neutral": ("neutral",), "anger": ("anger",)}, source="unknown")
AFFECT = NumbersTarget(names=("valence", "arousal"), lowest=-1, highest=1, source="unknown")
UNITS = UnitsTarget(units=(1, 12), source="unknown")


def a_layout(**changes):
    fields = {
        "about": "invented",
        "source": "unknown",
        "codes": {"0": "neutral", "1": "anger"},
        "files": {"validation": "labels/*.txt"},
        "header": "Neutral,Anger",
        "names": ("class",),
        "invalid": ("-1",),
        "media": "images/{video}/{frame:05d}.jpg",
    }
    return FrameLabels(**fields | changes)


def read(root, layout, target, split="validation", fold=None):
    found = list(FrameLabelsReader(layout, target).items(root, split, fold))
    items = [each for each in found if isinstance(each, Item)]
    return items, [each for each in found if isinstance(each, Problem)]


def test_row_n_is_the_label_of_frame_n_from_1_and_invalid_frames_are_counted(tmp_path):
    a_frame_folder(tmp_path / "images/7-60", ["00001.jpg", "00003.jpg", "00004.jpg"])
    a_text(tmp_path / "labels/7-60.txt", "Neutral,Anger\r\n1\r\n-1\r\n0\r\n1\r\n1\r\n9\r\n")
    items, problems = read(tmp_path, a_layout(), EXPRESSIONS)
    assert [(item.key, item.class_name, item.group) for item in items] == [
        ("images/7-60/00001.jpg", "anger", "7-60"),
        ("images/7-60/00003.jpg", "neutral", "7-60"),
        ("images/7-60/00004.jpg", "anger", "7-60"),
    ]
    assert items[0].media == tmp_path / "images/7-60/00001.jpg"
    assert problems == [
        Problem("left out: the frame has no valid label", "labels/7-60.txt, row 3"),
        Problem("missing image", "images/7-60/00005.jpg"),
        Problem("unknown class code", "labels/7-60.txt, row 7: '9'"),
    ]


def test_the_second_person_of_a_video_has_frames_and_labels_of_its_own(tmp_path):
    for name, label in [("8-30-1280x720", 0), ("8-30-1280x720_left", 1), ("8-30-1280x720_right", 0)]:
        a_frame_folder(tmp_path / "images" / name, ["00001.jpg"])
        a_text(tmp_path / "labels" / f"{name}.txt", f"Neutral,Anger\n{label}\n")
    items, _ = read(tmp_path, a_layout(), EXPRESSIONS)
    assert [(item.group, item.class_name) for item in items] == [
        ("8-30-1280x720", "neutral"),
        ("8-30-1280x720_left", "anger"),
        ("8-30-1280x720_right", "neutral"),
    ]


def test_another_order_of_classes_in_the_header_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    a_text(tmp_path / "labels/a.txt", "Anger,Neutral\n0\n")
    with pytest.raises(DataError, match="the first row is 'Anger,Neutral', and not 'Neutral,Anger'"):
        read(tmp_path, a_layout(), EXPRESSIONS)
    assert "with the first row Neutral,Anger" in (FrameLabelsReader(a_layout(), EXPRESSIONS).fits(tmp_path) or "")


def test_numbers_are_read_and_minus_5_means_that_there_is_none(tmp_path):
    a_frame_folder(tmp_path / "images/a", ["00001.jpg", "00002.jpg", "00003.jpg", "00004.jpg", "00005.jpg"])
    a_text(tmp_path / "labels/a.txt", "valence,arousal\n0.25,-0.5\n-5,-5\n-5.0,0.1\n0.3\n2,0\n")
    layout = a_layout(header="valence,arousal", names=("valence", "arousal"), invalid=("-5",), codes={})
    (item,), problems = read(tmp_path, layout, AFFECT)
    assert item.numbers == {"valence": 0.25, "arousal": -0.5}
    assert [(each.kind, each.place) for each in problems] == [
        ("left out: the frame has no valid label", "labels/a.txt, row 3"),
        ("left out: the frame has no valid label", "labels/a.txt, row 4"),
        ("wrong number of values", "labels/a.txt, row 5: 1 for valence, arousal"),
        ("number out of range", "labels/a.txt, row 6: valence=2"),
    ]


def test_action_units_are_shown_or_not_and_minus_1_is_no_label(tmp_path):
    a_frame_folder(tmp_path / "images/a", ["00001.jpg", "00002.jpg", "00003.jpg"])
    a_text(tmp_path / "labels/a.txt", "AU1,AU12\n0,1\n-1,1\n0,2\n")
    layout = a_layout(header="AU1,AU12", names=("AU1", "AU12"), codes={})
    (item,), problems = read(tmp_path, layout, UNITS)
    assert item.units == {1: False, 12: True}
    assert [each.kind for each in problems] == [
        "left out: the frame has no valid label",
        "an action unit is neither 0 nor 1",
    ]


def test_the_columns_must_be_the_action_units_of_the_card():
    with pytest.raises(ConfigError, match="AU1, AU4"):
        FrameLabelsReader(a_layout(names=("AU1", "AU4"), codes={}), UNITS)


def test_a_blank_row_does_not_shift_the_frames(tmp_path):
    a_frame_folder(tmp_path / "images/a", ["00001.jpg", "00002.jpg", "00003.jpg"])
    a_text(tmp_path / "labels/a.txt", "Neutral,Anger\n0\n\n1\n")
    items, _ = read(tmp_path, a_layout(), EXPRESSIONS)
    assert [(item.key, item.class_name) for item in items] == [
        ("images/a/00001.jpg", "neutral"),
        ("images/a/00003.jpg", "anger"),
    ]


AFEW_VA = {
    "form": "afew_va",
    "files": {"train": "*/*.json", "test": "*/*.json"},
    "header": None,
    "names": ("valence", "arousal"),
    "invalid": (),
    "codes": {},
    "media": "{folder}/{frame}.png",
    "folds": 2,
}
TENTHS = NumbersTarget(names=("valence", "arousal"), lowest=-1, highest=1, divisor=10, source="unknown")


def a_clip(root, name, labels):
    a_frame_folder(root / name, [f"{number:05d}.png" for number in range(len(labels))])
    frames = {f"{number:05d}": label for number, label in enumerate(labels)}
    (root / name / f"{name}.json").write_bytes(orjson.dumps({"frames": frames, "video_id": name}))


def test_a_json_document_has_the_labels_of_a_clip(tmp_path):
    a_clip(tmp_path, "001", [{"valence": -3.0, "arousal": 10, "landmarks": [[1, 2]]}, {"valence": 1}])
    a_clip(tmp_path, "002", [{"valence": 0, "arousal": 5}])
    a_clip(tmp_path, "003", [])
    layout = a_layout(**AFEW_VA)
    items, problems = read(tmp_path, layout, TENTHS, "test", 1)
    assert [(item.key, item.numbers, item.group) for item in items] == [
        ("001/00000.png", {"valence": -0.3, "arousal": 1.0}, "001")
    ]
    assert problems == [
        Problem("wrong number of values", "001/001.json, frame 00001: valence, arousal are needed"),
        Problem("video without frames", "003/003.json"),
    ]
    assert [item.group for item in read(tmp_path, layout, TENTHS, "train", 1)[0]] == ["002"]
    assert [item.group for item in read(tmp_path, layout, TENTHS, "test", 2)[0]] == ["002"]


def test_a_json_document_of_another_form_is_an_error(tmp_path):
    a_text(tmp_path / "001/001.json", "[1]")
    with pytest.raises(DataError, match=r"001\.json has no object `frames`"):
        read(tmp_path, a_layout(**AFEW_VA), TENTHS, "test", 1)


@pytest.mark.parametrize(("split", "fold"), [("test", None), ("test", 3), ("validation", 1)])
def test_a_fold_that_the_layout_does_not_have_is_an_error(tmp_path, split, fold):
    a_clip(tmp_path, "001", [{"valence": 0, "arousal": 5}])
    with pytest.raises(DataError, match="the layout has"):
        read(tmp_path, a_layout(**AFEW_VA), TENTHS, split, fold)


def test_a_folder_fits_if_a_split_and_the_images_are_there(tmp_path):
    reader = FrameLabelsReader(a_layout(), EXPRESSIONS)
    assert reader.fits(tmp_path) == "images"
    (tmp_path / "images").mkdir()
    assert reader.fits(tmp_path) == "labels/*.txt"
    a_text(tmp_path / "labels/a.txt", "Neutral,Anger\n0\n")
    assert reader.fits(tmp_path) is None


def test_a_copy_without_files_of_labels_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"has no file labels/\*\.txt"):
        read(tmp_path, a_layout(), EXPRESSIONS)
