"""Tests folders of classes: one folder of images for each class, whose name is the label."""

import json
from dataclasses import replace

import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.writing.row_source import Noted
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns, annotation_of
from hypothesis import given
from hypothesis import strategies as st
from pack_cases import bad_rows, packed, samples_of
from shard_cases import encode

EMOTION = TableColumns(labels=("emotion",))


@pytest.fixture
def train(tmp_path):
    for number, name in enumerate(("joy/a.png", "joy/b.png", "fear/a.png", "fear/deep/c.png")):
        path = tmp_path / "data/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    return tmp_path / "data/train"


def labels_of(url):
    return {sample.key: load_annotation(sample.annotation) for sample in samples_of(url)}


def test_the_name_of_the_folder_is_the_label_and_no_caption_is_needed(train, tmp_path):
    manifest = packed(train, tmp_path / "out", EMOTION).manifest
    assert manifest.without_caption == 4
    joy, fear = ((), {"emotion": "joy"}), ((), {"emotion": "fear"})
    assert labels_of(tmp_path / "out") == {"joy_a": joy, "joy_b": joy, "fear_a": fear, "fear_deep_c": fear}


def test_classes_may_get_other_names(train, tmp_path):
    named = replace(EMOTION, label_names={"joy": "happiness", "fear": "fear"})
    packed(train, tmp_path / "out", named)
    assert labels_of(tmp_path / "out")["joy_a"] == ((), {"emotion": "happiness"})
    (one, two) = bad_rows(train, replace(EMOTION, label_names={"joy": "happiness"}))
    assert "label 'emotion' is 'fear', which --label-names does not name" in one
    assert "fear/deep/c.png" in two


def test_names_of_values_need_exactly_one_label():
    for labels in ((), ("a", "b")):
        with pytest.raises(RecordError, match=r"belong to one label, but there are \d"):
            TableColumns(labels=labels, label_names={"1": "joy"})


def test_folders_of_splits_are_named(train, tmp_path):
    for split in ("valid", "Test"):
        (train.parent / split / "joy").mkdir(parents=True)
        (train.parent / split / "joy/a.png").write_bytes(encode(0))
    with pytest.raises(RecordError, match=r"holds Test, train, valid, which are splits.*such as .*/data/Test\."):
        open_source(train.parent, EMOTION)


def test_a_class_with_the_name_of_a_split_is_a_class(tmp_path):
    for name in ("test", "joy"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(encode(0))
    assert packed(tmp_path / "in", tmp_path / "out", EMOTION).manifest.samples == 2


def test_without_a_name_of_the_label_the_first_image_says_what_to_do(train):
    assert "if its folder has the name of its class, give the name of that label" in bad_rows(train)[0]


def test_annotations_win_over_folders_and_a_line_says_so(train, tmp_path):
    for path in train.rglob("*.png"):
        annotation = {"caption": {"global": "A face."}, "labels": {"emotion": "calm"}}
        path.with_suffix(".json").write_text(json.dumps(annotation))
    source = open_source(train, EMOTION)
    assert isinstance(source, Noted)
    (note,) = source.notes
    assert note.endswith("the labels are those of the .json files; the names of its folders ('fear', 'joy') are not.")
    packed(train, tmp_path / "out", EMOTION)
    assert {labels["emotion"] for _, labels in labels_of(tmp_path / "out").values()} == {"calm"}
    assert not isinstance(open_source(train), Noted)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (replace(EMOTION, captions="required"), "have no captions"),
    ],
)
def test_what_folders_of_classes_do_not_have_is_refused(train, columns, told):
    with pytest.raises(RecordError, match=told):
        open_source(train, columns)


def test_files_that_belong_to_no_class_are_bad_rows_or_counted(train, tmp_path):
    (train / "stray.png").write_bytes(encode(1))
    (train / "joy/x.bmp").write_bytes(b"")
    (train / "joy/._a.png").write_bytes(b"")
    (train / "joy/notes.md").write_text("")
    (train / "classes.json").write_text("{}")
    (train / ".ipynb_checkpoints").mkdir()
    (train / ".ipynb_checkpoints/a-checkpoint.png").write_bytes(encode(2))
    lines = bad_rows(train, EMOTION)
    assert any("stray.png: it lies beside the folders of classes" in line for line in lines)
    done = packed(train, tmp_path / "out", EMOTION, skip_bad=2)
    assert done.left_out == {"._* of macOS": 1, ".md": 1, ".json": 1, "hidden": 1}
    assert done.manifest.samples == 4


def test_an_annotation_that_is_not_read_is_counted(train, tmp_path):
    # Only the annotations beside the first 64 images decide how the folder is read.
    for number in range(64):
        (train / "fear" / f"{number:03d}.png").write_bytes(encode(number))
    (train / "joy/b.json").write_text("{}")
    assert packed(train, tmp_path / "out", EMOTION).left_out == {".json": 1}


@given(st.text(min_size=1, max_size=30))
def test_any_name_of_a_folder_is_a_label(name):
    assert load_annotation(annotation_of({"emotion": name}, EMOTION)) == ((), {"emotion": name})


def test_a_line_says_which_folders_are_classes_and_each_level_may_be_a_label(tmp_path):
    root = tmp_path / "in"
    for name in ("train/joy/a.png", "train/fear/b.png", "test/joy/c.png", "test/d.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(len(name)))
    (root / "train/contempt").mkdir()
    source = open_source(root / "train", EMOTION)
    assert isinstance(source, Noted)
    assert source.notes[0].endswith("first folder: 'fear', 'joy'; there is no image in 'contempt'.")
    (root / "train").rename(root / "person1")
    nested = open_source(root, EMOTION)
    assert isinstance(nested, Noted)
    assert "first folder: 'person1', 'test'; the folders in them ('contempt', 'fear', 'joy')" in nested.notes[0]
    levels = TableColumns(labels=("part", "emotion"))
    (bad,) = bad_rows(root, levels)
    assert "test/d.png: it does not lie in a folder for each of the labels part, emotion" in bad
    packed(root, tmp_path / "out", levels, skip_bad=1)
    assert labels_of(tmp_path / "out")["person1_fear_b"] == ((), {"part": "person1", "emotion": "fear"})


@pytest.mark.parametrize("labels", [(), ("emotion",)])
def test_tables_are_named_if_images_have_nothing_else(tmp_path, labels):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "metadata.csv").write_text("file_name,text\n")
    (tmp_path / "0.png").write_bytes(encode(0))
    with pytest.raises(RecordError, match=r"no annotations beside .*; pack a table instead: .*test/metadata\.csv"):
        open_source(tmp_path, TableColumns(labels=labels))


def test_a_link_to_itself_is_a_bad_row(train):
    (train / "joy/loop.png").symlink_to("loop.png")
    (bad,) = bad_rows(train, EMOTION)
    assert "joy/loop.png cannot be read (Too many levels of symbolic links)" in bad
