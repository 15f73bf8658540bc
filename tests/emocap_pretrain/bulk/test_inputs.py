"""Tests the inputs: which items they list, under which names, and how they treat unreadable images."""

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fakes import SquaresOf8, an_image, computed, images_in, rows_of
from emocap_shards.errors import ManifestError, RecordError

from emocap_pretrain.bulk.inputs import open_input
from emocap_pretrain.errors import ConfigError


def names_and_errors(source, folder: Path):
    return [(row["name"], row["error"]) for row in rows_of(computed(source, folder))]


def test_a_folder_gives_its_images_sorted_with_their_paths(tmp_path):
    faces = tmp_path / "faces"
    for name in ("b.png", "a/z.jpg", "a/ä\nb.webp", ".hidden.png", ".cache/x.png"):
        an_image(faces / name)
    (faces / "notes.txt").write_text("no image")
    (faces / "link").symlink_to(faces / "a")
    (faces / "c.png").symlink_to(faces / "b.png")
    source = open_input(str(faces))
    names = ["a/z.jpg", "a/ä\nb.webp", "b.png", "c.png"]
    assert names_and_errors(source, tmp_path / "parts") == [(name, None) for name in names]
    assert source.left_out == {".txt": 1, "link to a folder": 1, "hidden": 2}


def test_an_unreadable_image_is_a_row_with_an_error(tmp_path):
    faces = images_in(tmp_path / "faces", 3)
    (faces / "0001.png").write_bytes(b"")
    (faces / "0001b.jpg").write_bytes((faces / "0000.png").read_bytes()[:40])
    (faces / "0001c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (faces / "0001d.png").mkdir()
    os.mkfifo(faces / "0001e.png")
    (faces / "0001f.png").symlink_to("missing.png")
    found = names_and_errors(open_input(str(faces)), tmp_path / "parts")
    assert [name for name, error in found if error is None] == ["0000.png", "0002.png"]
    reasons = dict(found)
    assert "empty" in reasons["0001.png"]
    assert "cannot be decoded" in reasons["0001b.jpg"]
    assert "HEIC" in reasons["0001c.heic"]
    assert "named pipe" in reasons["0001e.png"]
    assert "No such file" in reasons["0001f.png"]


def test_an_image_that_is_deleted_after_the_listing_is_a_row_with_an_error(tmp_path):
    faces = images_in(tmp_path / "faces", 2)
    source = open_input(str(faces))
    (faces / "0000.png").unlink()
    found = names_and_errors(source, tmp_path / "parts")
    assert found == [("0000.png", "No such file or directory"), ("0001.png", None)]


def test_a_name_that_is_not_utf8_is_written_with_escapes(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    Path(os.fsdecode(os.fsencode(faces) + b"/\xff.png")).write_bytes(an_image(tmp_path / "a.png").read_bytes())
    assert names_and_errors(open_input(str(faces)), tmp_path / "parts") == [("\\xff.png", None)]


def test_a_table_gives_a_row_for_each_of_its_rows(tmp_path):
    an_image(tmp_path / "a.png")
    an_image(tmp_path / "b.png")
    table = tmp_path / "t.csv"
    table.write_text("id,path\n1,a.png\n2,b.png\n3,a.png\n4,\n5,missing.png\n6,/etc/hostname\n")
    found = names_and_errors(open_input(str(table), image="path"), tmp_path / "parts")
    assert [name for name, error in found if error is None] == ["a.png", "b.png", "a.png"]
    assert [name for name, _ in found][3:] == [f"{table}:5", "missing.png", "/etc/hostname"]
    assert "leads out of" in found[5][1]


def test_a_parquet_table_names_images_below_a_root(tmp_path):
    an_image(tmp_path / "images" / "x" / "a.png")
    pq.write_table(pa.table({"file": ["x/a.png"], "n": [1]}), tmp_path / "t.parquet")
    source = open_input(str(tmp_path / "t.parquet"), image="file", image_root=tmp_path / "images")
    assert names_and_errors(source, tmp_path / "parts") == [("x/a.png", None)]


def test_a_packed_dataset_gives_its_samples_by_their_keys(faces, tmp_path):
    source = open_input(faces)
    found = rows_of(computed(source, tmp_path / "parts"))
    assert len(found) == len({row["name"] for row in found}) == 24
    assert all(row["error"] is None and row["embedding"] is not None for row in found)


def test_damaged_samples_and_a_missing_shard_are_rows_with_errors(faces, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(faces).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shards = sorted(copy.glob("*.tar"))
    shards[1].unlink()
    data = bytearray(shards[0].read_bytes())
    data[700] ^= 255
    shards[0].write_bytes(data)
    found = rows_of(computed(open_input(str(copy)), tmp_path / "parts"))
    bad = [row for row in found if row["error"]]
    assert len(found) == 24
    assert [row["embedding"] is None for row in found] == [row["error"] is not None for row in found]
    assert len(bad) == 8
    assert bad[1]["name"] == "sample 7"
    assert "missing" in bad[1]["error"]


def test_a_slice_is_small_and_can_be_sent(tmp_path):
    source = open_input(str(images_in(tmp_path / "faces", 300)))
    assert len(pickle.dumps(source.slice(10, 12))) < 400
    assert [picture.name for picture in source.slice(10, 12).pictures(SquaresOf8(), None)] == ["0010.png", "0011.png"]


def test_the_digest_changes_with_every_change_of_a_folder(tmp_path):
    faces = images_in(tmp_path / "faces", 2)
    seen = {open_input(str(faces)).digest}
    os.utime(faces / "0000.png", ns=(1, 1))
    seen.add(open_input(str(faces)).digest)
    (faces / "0000.png").rename(faces / "0003.png")
    seen.add(open_input(str(faces)).digest)
    assert len(seen) == 3
    assert open_input(str(faces)).digest in seen


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: path.mkdir(), ConfigError, "holds no image and no video"),
        (lambda _: None, ConfigError, "is not a dataset, a folder, a table"),
        (lambda path: path.write_text("x"), ConfigError, "is not a dataset, a folder, a table"),
        (lambda path: path.with_suffix(".csv").write_text("image\n"), ConfigError, "has no row with the path"),
        (lambda path: path.with_suffix(".csv").write_text("path\na.png\n"), RecordError, "no column 'image'"),
        (
            lambda path: pq.write_table(pa.table({"image": [b"x"]}), path.with_suffix(".parquet")),
            ConfigError,
            "`emocap pack`",
        ),
    ],
)
def test_an_input_without_images_is_refused_in_one_line(tmp_path, make, error, message):
    make(tmp_path / "it")
    (where,) = [*tmp_path.iterdir()] or [tmp_path / "it"]
    with pytest.raises(error, match=message) as caught:
        open_input(str(where))
    assert "\n" not in str(caught.value)


def test_a_url_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no dataset"):
        open_input(f"file://{tmp_path}")
