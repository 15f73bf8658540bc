"""Tests the three formats of the output, and that they are written in bounded memory."""

import csv
import errno
import json
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bulk_fakes import FakeScorer, a_computation, an_image, computed, images_in, works_of
from emocap_shards.errors import StoreError

from emocap_pretrain.bulk import joining, new_file
from emocap_pretrain.bulk.inputs import open_input
from emocap_pretrain.bulk.joining import PartTables, format_of, join
from emocap_pretrain.bulk.part_files import PartWriter, schema_of
from emocap_pretrain.bulk.pictures import Picture
from emocap_pretrain.errors import ConfigError, DataError

ABOUT = {"model": "aa", "classes": ["fröhlich"]}
FORMATS = ("parquet", "csv", "npz")


@pytest.fixture
def parts(tmp_path):
    faces = images_in(tmp_path / "faces", 11)
    (faces / "0002.png").write_bytes(b"")
    an_image(faces / 'ä, "b"\nc.png', 7)
    return computed(open_input(str(faces)), tmp_path / "parts", most=5)


def test_a_parquet_file_has_the_rows_in_order_and_what_they_are_made_of(parts, tmp_path):
    join(parts, tmp_path / "o.parquet", "parquet", ABOUT)
    table = pd.read_parquet(tmp_path / "o.parquet")
    assert list(table.columns) == ["name", "embedding", "error"]
    assert table.name.tolist() == [*(f"{number:04d}.png" for number in range(11)), 'ä, "b"\nc.png']
    assert np.stack(table.embedding.drop(2))[:, 0].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 7]
    assert table.embedding[2] is None
    assert "empty" in table.error[2]
    assert table.error.notna().sum() == 1
    assert json.loads(pq.read_schema(tmp_path / "o.parquet").metadata[b"emocap"]) == ABOUT


def test_a_csv_file_quotes_names_and_has_a_column_for_each_number(parts, tmp_path):
    join(parts, tmp_path / "o.csv", "csv", ABOUT)
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "e0", "e1", "e2", "e3", "error"]
    assert rows[-1]["name"] == 'ä, "b"\nc.png'
    assert (rows[2]["e0"], rows[3]["e0"], rows[3]["error"]) == ("", "3", "")
    assert "empty" in rows[2]["error"]


def test_an_npz_file_has_an_array_for_each_column_and_needs_no_pickle(parts, tmp_path):
    join(parts, tmp_path / "o.npz", "npz", ABOUT)
    with np.load(tmp_path / "o.npz", allow_pickle=False) as found:
        assert sorted(found) == ["embedding", "emocap", "error", "name"]
        assert found["name"][-1] == 'ä, "b"\nc.png'
        assert found["embedding"].shape == (12, 4)
        assert found["embedding"].dtype == np.float32
        assert np.isnan(found["embedding"]).any(1).tolist() == [number == 2 for number in range(12)]
        assert (found["error"] != "").tolist() == [number == 2 for number in range(12)]
        assert json.loads(str(found["emocap"])) == ABOUT


def test_the_places_of_frames_are_written_in_every_format(tmp_path):
    path = tmp_path / "part-000000.parquet"
    writer = PartWriter(path, schema_of(FakeScorer().fields, videos=True))
    pictures = [Picture("a.mp4", b"", 1, 0.5, 5), Picture("b.png", b""), Picture("c.mp4", b"", 1, 2.0, 20)]
    writer.add(pictures, [None, None, DataError("broken")], {"embedding": np.ones((2, 4), np.float32)})
    writer.close()
    parts = PartTables([path])
    for kind in FORMATS:
        join(parts, tmp_path / f"o.{kind}", kind, ABOUT)
    assert pd.read_csv(tmp_path / "o.csv").frame.tolist()[::2] == [5, 20]
    assert pd.read_parquet(tmp_path / "o.parquet").time_s.tolist()[::2] == [0.5, 2.0]
    with np.load(tmp_path / "o.npz") as found:
        assert found["frame"].tolist() == [5, -1, 20]
        assert np.isnan(found["time_s"]).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_parts_give_equal_bytes(parts, tmp_path, kind):
    for name in ("a", "b"):
        join(parts, tmp_path / name, kind, ABOUT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_counts_and_the_first_errors_are_those_of_all_parts(tmp_path):
    faces = images_in(tmp_path / "faces", 12)
    for number in (1, 4, 6, 7, 11):
        (faces / f"{number:04d}.png").write_bytes(b"")
    joined = computed(open_input(str(faces)), tmp_path / "parts", most=5).counts()
    assert (joined.rows, joined.errors) == (12, 5)
    assert [name for name, _ in joined.examples] == ["0001.png", "0004.png", "0006.png"]


@pytest.mark.parametrize("kind", FORMATS)
def test_only_some_thousand_rows_are_in_memory(tmp_path, kind):
    rows, size = 1024, 64
    one = tmp_path / "part.parquet"
    fields = [joining.pa.field("embedding", joining.pa.list_(joining.pa.float32()), metadata={"size": str(size)})]
    writer = PartWriter(one, schema_of(fields, videos=False))
    vectors = np.random.default_rng(0).random((rows, size), np.float32)
    writer.add([Picture(f"{number}.png", b"") for number in range(rows)], [None] * rows, {"embedding": vectors})
    writer.close()
    arrow = joining.pa.default_memory_pool()
    peaks = []
    for times in (16, 64):  # 4 and 16 MiB of vectors
        tracemalloc.start()
        before = arrow.bytes_allocated()
        join(PartTables([one] * times), tmp_path / "o", kind, ABOUT)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert arrow.bytes_allocated() - before < 1 << 20
    assert peaks[1] < peaks[0] + (1 << 20)


def test_a_full_disk_leaves_no_output_and_keeps_the_parts(parts, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(new_file.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        join(parts, tmp_path / "o.parquet", "parquet", ABOUT)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["faces", "parts"]
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_a_damaged_part_is_named_with_the_cure(parts, tmp_path):
    parts.paths[1].write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StoreError, match=r"part-000001.parquet cannot be read .*: delete it") as caught:
        join(parts, tmp_path / "o.csv", "csv", ABOUT)
    assert "\n" not in str(caught.value)


def test_a_text_array_is_compressed(parts, tmp_path):
    join(parts, tmp_path / "o.npz", "npz", ABOUT)
    with zipfile.ZipFile(tmp_path / "o.npz") as archive:
        kinds = {info.filename: info.compress_type for info in archive.infolist()}
    assert kinds["name.npy"] == zipfile.ZIP_DEFLATED
    assert kinds["embedding.npy"] == zipfile.ZIP_STORED


def test_the_format_comes_from_the_option_or_the_suffix(tmp_path):
    assert format_of(tmp_path / "a.NPZ", None) == "npz"
    assert format_of(tmp_path / "a.data", "csv") == "csv"
    with pytest.raises(ConfigError, match=r"\.parquet, \.csv or \.npz"):
        format_of(tmp_path / "a.txt", None)


def test_a_group_of_rows_of_a_part_depends_on_the_rows_alone(tmp_path):
    works = list(works_of(open_input(str(images_in(tmp_path / "faces", 30))), 30))
    a_computation(tmp_path).compute(works, FakeScorer(), lambda _: None)
    assert pq.read_metadata(tmp_path / "part-000000.parquet").num_row_groups == 1
