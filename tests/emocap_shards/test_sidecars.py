"""Tests folders of images with texts, foreign JSON, arrays or a table of metadata beside the images."""

import json

import numpy as np
import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.sample import Caption
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns
from emocap_shards.writing.sources.metadata import MetadataSource
from emocap_shards.writing.sources.text_tables import TextTableConfig
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
    for name in ("notes.pdf", "README.txt", "0_val.npy", "1_val.npy", "classes.json"):
        (folder / name).write_bytes(b"x")
    done = packed(folder, tmp_path / "out")
    assert read(tmp_path / "out") == [(str(number), [f"A face {number}."], {}) for number in range(3)]
    assert done.left_out == {".pdf": 1, ".txt": 1, ".npy": 2, ".json": 1}


def test_an_image_without_its_text_is_a_bad_row_with_its_file(tmp_path):
    folder = images(tmp_path / "in", 4)
    (folder / "0.txt").write_text("A face.")
    (folder / "1.txt").write_bytes(b"\xff")
    (folder / "3.txt").write_text("\n")
    told = bad_rows(folder)
    assert len(told) == 3
    assert '3.png: the caption has no "global" part' in told[2]
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


def test_fields_of_any_json_beside_images_are_columns(tmp_path):
    folder = images(tmp_path / "in", 2)
    for number in range(2):
        about = {"text": f"A face {number}.", "emotion": "joy", "age": number}
        (folder / f"{number}.json").write_text(json.dumps(about))
    packed(folder, tmp_path / "out", TableColumns(global_="text", labels=("emotion",)))
    assert read(tmp_path / "out") == [(str(n), [f"A face {n}."], {"emotion": "joy"}) for n in range(2)]
    packed(folder, tmp_path / "bare", TableColumns(captions="none", labels=("age",)))
    assert read(tmp_path / "bare") == [(str(n), [], {"age": n}) for n in range(2)]


def test_options_on_labels_hold_for_annotations_of_a_shard_and_others_are_refused(tmp_path):
    folder = images(tmp_path / "in", 2)
    for number, labels in enumerate(({"emotion": "1", "age": 3}, {"age": 4})):
        annotation = {"caption": {"global": "A face."}, "labels": labels}
        (folder / f"{number}.json").write_text(json.dumps(annotation))
    packed(folder, tmp_path / "age", TableColumns(labels=("age",), captions="none"))
    assert read(tmp_path / "age") == [("0", [], {"age": 3}), ("1", [], {"age": 4})]
    (bad,) = bad_rows(folder, TableColumns(labels=("emotion",), label_names={"1": "joy"}))
    assert "1.png: there is no column 'emotion', but" in bad
    for columns, option in ((TableColumns(global_="text"), "--global"), (TableColumns(image="x"), "--image")):
        with pytest.raises(RecordError, match=f"{option} cannot be used for this kind of source"):
            open_source(folder, columns)


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
        for name, value in (("exp", str(number)), ("val", f"-0.{number + 1}"), ("aro", np.float32(0.1))):
            np.save(tmp_path / "in" / "annotations" / f"{number}_{name}.npy", np.array(value))
    packed(tmp_path / "in" / packed_folder, tmp_path / "out", TableColumns(labels=("exp", "val", "aro")))
    assert [labels for _, _, labels in read(tmp_path / "out")] == [
        {"exp": 0.0, "val": -0.1, "aro": 0.1},
        {"exp": 1.0, "val": -0.2, "aro": 0.1},
    ]


def test_an_array_that_is_not_one_number_is_a_bad_row(tmp_path):
    folder = images(tmp_path / "in", 5)
    np.save(folder / "0_exp.npy", np.array(3))
    np.save(folder / "1_exp.npy", np.zeros(4))
    np.save(folder / "2_exp.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    # The header of a file of a few bytes may claim any number of values, and .npy may be an archive.
    claim = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    (folder / "3_exp.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(claim).to_bytes(2, "little") + claim)
    with (folder / "4_exp.npy").open("wb") as file:
        np.savez(file, np.array(3))
    told = bad_rows(folder, TableColumns(labels=("exp",)))
    assert [line.split(": ", 1)[1].split(" (")[0] for line in told] == [
        "1_exp.npy is not an array of one number or text",
        "2_exp.npy is not an array of one number or text",
        "3_exp.npy is not an array of one number or text",
        "4_exp.npy is not a NumPy array",
    ]


def test_arrays_whose_labels_are_not_named_are_named(tmp_path):
    folder = images(tmp_path / "in" / "images", 2)
    (tmp_path / "in" / "annotations").mkdir()
    for name in ("0_val.npy", "0_exp.npy", "00_lnd.npy"):
        np.save(tmp_path / "in" / "annotations" / name, np.array(1))
    with pytest.raises(
        RecordError, match=r"has labels in arrays \('exp', 'val'\); name them, such as with --label exp"
    ):
        open_source(folder)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_table_of_metadata_in_the_folder_names_files_and_captions(tmp_path, name):
    folder = images(tmp_path / "in")
    rows = [{"file_name": f"{number}.png", "text": f"A face {number}.", "emotion": "joy"} for number in range(3)]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / name).write_text("\n".join(lines if name.endswith("csv") else map(json.dumps, rows)))
    packed(folder, tmp_path / "out", TableColumns(labels=("emotion",)))
    assert read(tmp_path / "out") == [(str(n), [f"A face {n}."], {"emotion": "joy"}) for n in range(3)]


def test_images_that_a_table_of_metadata_does_not_name_are_counted(tmp_path):
    folder = images(tmp_path / "in", 3)
    images(folder / "more", 1)
    (folder / "notes.txt").write_text("x")
    (folder / "metadata.jsonl").write_text('\n{"file_name": "./0.png", "text": "A face."}\n{"file_name": "1.png"}\n')
    done = packed(folder, tmp_path / "out", skip_bad=1)
    assert read(tmp_path / "out") == [("0", ["A face."], {})]
    assert done.left_out == {".txt": 1, "images that metadata.jsonl does not name": 2}
    source = open_source(folder, image_root=tmp_path)
    assert isinstance(source, MetadataSource)
    assert len(list(source.rows())) == 2
    unnamed = "images that metadata.jsonl does not name"
    assert [source.left_out[kind] for kind in (".txt", ".jsonl", unnamed)] == [1, 1, 4]


def test_a_table_of_metadata_may_have_another_delimiter_or_encoding(tmp_path):
    folder = images(tmp_path / "in", 1)
    (folder / "metadata.csv").write_text("file_name;text\n0.png;Ein Gesicht.\n", encoding="utf-8-sig")
    packed(folder, tmp_path / "semicolon")
    (folder / "metadata.csv").write_text("file_name;text\n0.png;\u8138\n", encoding="gb18030")
    source = open_source(folder, text_table=TextTableConfig(encoding="gb18030"))
    assert [row.key for row in source.rows()] == ["0"]
    (folder / "metadata.csv").write_text("score\n1\n")
    with pytest.raises(RecordError, match=r"pack a table instead: .*metadata\.csv"):
        open_source(folder, text_table=TextTableConfig(encoding="gb18030"))


def test_captions_of_training_programs_are_read_and_a_missing_array_is_named(tmp_path):
    folder = images(tmp_path / "in", 2)
    (folder / "0.caption").write_text("A face.")
    (folder / "1.caption").write_text("Another.")
    packed(folder, tmp_path / "out")
    assert [texts for _, texts, _ in read(tmp_path / "out")] == [["A face."], ["Another."]]
    np.save(folder / "0_exp.npy", np.array("3"))
    (bad,) = bad_rows(folder, TableColumns(labels=("exp",)))
    assert "1.png: the label exp is missing, because there is no 1_exp.npy" in bad
