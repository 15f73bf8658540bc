"""Tests folders of images with texts, foreign JSON, arrays or a table of metadata beside the images."""

import json

import numpy as np
import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.sample import Caption
from emocap_shards.writing.sources.columns import TableColumns
from pack_cases import bad_rows, packed, samples_of
from shard_cases import encode


def images(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode(number))
    return folder


def read(url):
    """Returns (key, texts of the captions, labels) of each sample."""
    found = [(sample.key, *load_annotation(sample.annotation)) for sample in samples_of(url)]
    return [(key, [caption.global_ for caption in captions], labels) for key, captions, labels in found]


def test_texts_beside_images_are_captions(tmp_path):
    folder = images(tmp_path / "in")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"A face {number}.\n", encoding="utf-8-sig")
    (folder / "notes.pdf").write_bytes(b"x")
    done = packed(folder, tmp_path / "out")
    assert read(tmp_path / "out") == [(str(number), [f"A face {number}."], {}) for number in range(3)]
    assert dict(done.left_out) == {".pdf": 1}


def test_an_image_without_its_text_is_a_bad_row_with_its_file(tmp_path):
    folder = images(tmp_path / "in")
    (folder / "0.txt").write_text("A face.")
    (folder / "1.txt").write_bytes(b"\xff")
    told = bad_rows(folder)
    assert len(told) == 2
    assert "1.png: 1.txt is not UTF-8" in told[0]
    assert "there is no 2.txt with a caption beside it" in told[1]


def test_files_of_img2dataset_have_the_text_before_the_field_caption(tmp_path):
    folder = images(tmp_path / "in" / "00000", 2)
    for number in range(2):
        about = {"caption": f"json {number}", "key": f"0000{number}", "url": "http://x.invalid", "age": 30 + number}
        (folder / f"{number}.json").write_text(json.dumps(about))
    (folder / "0.txt").write_text("text 0")
    packed(tmp_path / "in", tmp_path / "out", TableColumns(labels=("age",)))
    assert read(tmp_path / "out") == [("00000", ["text 0"], {"age": 30.0}), ("00001", ["json 1"], {"age": 31.0})]


def test_annotations_of_a_shard_are_read_as_before(tmp_path):
    folder = images(tmp_path / "in", 1)
    (folder / "0.json").write_text(json.dumps({"caption": {"global": "A face.", "local": ["A nose."]}}))
    (folder / "0.txt").write_text("Not this.")
    packed(folder, tmp_path / "out")
    (sample,) = samples_of(tmp_path / "out")
    assert load_annotation(sample.annotation)[0] == (Caption("A face.", ("A nose.",), ""),)


@pytest.mark.parametrize("packed_folder", ["", "images"])
def test_arrays_of_affectnet_are_labels(tmp_path, packed_folder):
    images(tmp_path / "in" / "images", 2)
    (tmp_path / "in" / "annotations").mkdir()
    for number in range(2):
        for name, value in (("exp", str(number)), ("val", f"-0.{number + 1}"), ("aro", 0.25)):
            np.save(tmp_path / "in" / "annotations" / f"{number}_{name}.npy", np.array(value))
    packed(tmp_path / "in" / packed_folder, tmp_path / "out", TableColumns(labels=("exp", "val", "aro")))
    assert [labels for _, _, labels in read(tmp_path / "out")] == [
        {"exp": 0.0, "val": -0.1, "aro": 0.25},
        {"exp": 1.0, "val": -0.2, "aro": 0.25},
    ]


def test_an_array_that_is_not_one_number_is_a_bad_row(tmp_path):
    folder = images(tmp_path / "in", 3)
    np.save(folder / "0_exp.npy", np.array(3))
    np.save(folder / "1_exp.npy", np.zeros(4))
    np.save(folder / "2_exp.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    told = bad_rows(folder, TableColumns(labels=("exp",)))
    assert "1_exp.npy is an array of 4 values" in told[0]
    assert "2_exp.npy is not a NumPy array" in told[1]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_table_of_metadata_in_the_folder_names_files_and_captions(tmp_path, name):
    folder = images(tmp_path / "in")
    rows = [{"file_name": f"{number}.png", "text": f"A face {number}.", "emotion": "joy"} for number in range(3)]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / name).write_text("\n".join(lines if name.endswith("csv") else map(json.dumps, rows)))
    packed(folder, tmp_path / "out", TableColumns(labels=("emotion",)))
    assert read(tmp_path / "out") == [(str(n), [f"A face {n}."], {"emotion": "joy"}) for n in range(3)]
