"""Tests samples that have labels and no caption, from the source to the reader."""

import json
from dataclasses import replace

import pytest
from emocap_shards.annotation import dump_annotation, load_annotation, normal_annotation
from emocap_shards.errors import AnnotationError, ManifestError, RecordError
from emocap_shards.inspecting.page import page
from emocap_shards.inspecting.summary import summarise
from emocap_shards.inspecting.verify import verify
from emocap_shards.manifest import Manifest, read_manifest
from emocap_shards.sample import Caption
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from emocap_shards.writing.reshard import reshard
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.columns import TableColumns
from emocap_shards.writing.unpack import unpack
from hypothesis import given
from hypothesis import strategies as st
from pack_cases import bad_rows, packed, samples_of, table_of, write_lines
from shard_cases import encode, record, records

LABELLED = TableColumns(labels=("emotion",))
values = st.one_of(st.text(), st.floats(allow_nan=False, allow_infinity=False))


def bare(number):
    return replace(record(number), caption=None)


def images(folder, count=3):
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode(number))


@given(st.dictionaries(st.text(), values, min_size=1))
def test_labels_alone_survive_the_way_through_json(labels):
    data = dump_annotation(None, labels)
    assert load_annotation(data) == ((), labels)
    assert "caption" not in json.loads(data)
    assert normal_annotation(data) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "neither"),
        (b'{"labels": {}}', "neither"),
        (b'{"caption": null, "labels": {}}', "neither"),
        (b'{"labels": {"a": 1}, "further": [{"global": "x"}]}', "further"),
    ],
)
def test_neither_captions_nor_labels_and_only_further_captions_are_refused(data, reason):
    with pytest.raises(AnnotationError, match=reason):
        load_annotation(data)
    for further in ((), [Caption("x", (), "")]):
        with pytest.raises(AnnotationError):
            dump_annotation(None, {}, further)


def test_a_dataset_with_captions_keeps_the_manifest_of_the_first_version(tmp_path):
    write_shards(records(3), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert "without_caption" not in manifest["shards"][0]
    assert read_manifest(tmp_path).without_caption == 0


def test_samples_without_a_caption_are_counted_in_the_manifest_of_each_shard(tmp_path):
    mixed = [bare(0), record(1), record(2), bare(3), bare(4)]
    written = write_shards(mixed, tmp_path, samples_per_shard=2)
    assert json.loads((tmp_path / "manifest.json").read_text())["schema"] == 2
    assert written == read_manifest(tmp_path)
    assert [shard.without_caption for shard in read_manifest(tmp_path).shards] == [1, 1, 1]
    assert read_manifest(tmp_path).without_caption == 3
    assert verify(tmp_path).faults == ()


@pytest.mark.parametrize("count", [-1, 3, True, "1", 1.0])
def test_a_manifest_with_an_impossible_count_is_damaged(tmp_path, count):
    write_shards([bare(0), bare(1)], tmp_path)
    tree = json.loads((tmp_path / "manifest.json").read_text())
    tree["shards"][0]["without_caption"] = count
    with pytest.raises(ManifestError, match="damaged"):
        Manifest.load(json.dumps(tree).encode(), url="x")


def test_verify_finds_a_manifest_that_counts_captions_wrongly(tmp_path):
    write_shards([bare(0), bare(1)], tmp_path)
    tree = json.loads((tmp_path / "manifest.json").read_text())
    tree["shards"][0]["without_caption"] = 1
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    (fault,) = verify(tmp_path).faults
    assert fault.reason == "2 of its samples have no caption, the manifest says 1"


def test_a_stream_gives_such_samples_without_a_caption(tmp_path):
    write_shards([bare(0), record(1)], tmp_path)
    steps = Stream(url=str(tmp_path), global_batch=2, shuffle=False, epochs=1).steps()
    found = [sample for portion in steps for sample in portion.samples]
    assert [sample.caption for sample in found] == [None, record(1).caption]
    assert found[0].labels == bare(0).labels


def test_an_interrupted_pack_keeps_the_count_of_its_finished_shards(tmp_path):
    def broken():
        yield from (bare(0), bare(1), record(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), tmp_path / "a", samples_per_shard=2)
    every = [bare(0), bare(1), record(2), bare(3)]
    again = write_shards(every, tmp_path / "a", samples_per_shard=2)
    assert again == write_shards(every, tmp_path / "b", samples_per_shard=2)
    assert again.without_caption == 3


def test_unpacked_packed_and_resharded_the_count_and_the_bytes_stay(tmp_path):
    first = write_shards([bare(0), record(1), bare(2)], tmp_path / "a")
    unpack(tmp_path / "a", tmp_path / "files")
    assert json.loads((tmp_path / "files/face-0000.json").read_text()) == {"labels": bare(0).labels}
    assert packed(tmp_path / "files", tmp_path / "b").manifest == first
    shards = reshard([str(tmp_path / "a")], tmp_path / "c", size=ShardSize(1), seed=3)
    assert sorted(shard.without_caption for shard in shards.manifest.shards) == [0, 1, 1]


def test_the_summary_and_its_page_show_the_count(tmp_path):
    write_shards([bare(0), bare(1), record(2)], tmp_path / "mixed")
    summary = summarise(tmp_path / "mixed")
    assert (summary.stock.without_caption, summary.parts["global"].without) == (2, 2)
    assert "2 of the samples have labels and no caption" in page(summary)
    write_shards([bare(0)], tmp_path / "bare")
    alone = page(summarise(tmp_path / "bare"))
    assert 'id="captions"' not in alone
    assert ">joy<" in alone


def test_a_table_of_labels_alone_needs_no_caption(tmp_path):
    images(tmp_path)
    table = tmp_path / "faces.csv"
    table.write_text("image,emotion,split\n0.png,joy,a\n1.png,fear,a\n")
    found = samples_of(tmp_path / "out") if packed(table, tmp_path / "out", LABELLED) else []
    assert [load_annotation(sample.annotation) for sample in found] == [
        ((), {"emotion": "joy"}),
        ((), {"emotion": "fear"}),
    ]


@pytest.mark.parametrize("column", ["text", "Caption_EN", "title", "sentence1", "local", "TXT"])
def test_a_column_that_looks_like_captions_must_be_named_or_refused(tmp_path, column):
    images(tmp_path)
    table = tmp_path / "faces.csv"
    table.write_text(f"image,{column},emotion\n0.png,Glad.,joy\n")
    with pytest.raises(RecordError, match=r"no column 'global'.*give --captions none"):
        packed(table, tmp_path / "out", LABELLED)
    assert packed(table, tmp_path / "b", replace(LABELLED, captions="none")).manifest.without_caption == 1
    assert packed(table, tmp_path / "c", replace(LABELLED, global_=column)).manifest.without_caption == 0


def test_a_named_column_of_captions_must_exist(tmp_path):
    images(tmp_path)
    table = tmp_path / "faces.csv"
    table.write_text("image,emotion\n0.png,joy\n")
    with pytest.raises(RecordError, match="no column 'words'"):
        packed(table, tmp_path / "out", replace(LABELLED, global_="words"))
    with pytest.raises(RecordError, match="no column 'global'"):
        packed(table, tmp_path / "out", replace(LABELLED, captions="required"))


def test_an_empty_caption_is_a_bad_row_unless_captions_are_optional(tmp_path):
    images(tmp_path)
    table = tmp_path / "faces.csv"
    table.write_text("image,global,emotion\n0.png,Glad.,joy\n1.png,,fear\n2.png,,\n")
    assert ["needs no caption" in line for line in bad_rows(table, LABELLED)] == [True, True]
    optional = replace(LABELLED, captions="optional")
    (line,) = bad_rows(table, optional)
    assert "2.png" in line
    assert "neither" in line
    assert packed(table, tmp_path / "out", optional, skip_bad=1).manifest.without_caption == 1


def test_json_rows_with_and_without_captions_are_packed_together(tmp_path):
    table_of(tmp_path, 2)
    rows = [{"image": "0.png", "global": "Glad.", "labels": {"a": 1}}, {"image": "1.png", "labels": {"a": 2}}]
    assert packed(write_lines(tmp_path / "faces.jsonl", rows), tmp_path / "out").manifest.without_caption == 1
    (line,) = bad_rows(write_lines(tmp_path / "b.jsonl", [{"image": "0.png"}]))
    assert "no column 'global'" in line


def test_a_summary_without_a_global_part_is_no_row_of_labels_alone(tmp_path):
    images(tmp_path)
    rows = [{"image": "0.png", "summary": "Glad.", "labels": {"a": 1}}]
    (line,) = bad_rows(write_lines(tmp_path / "faces.jsonl", rows), TableColumns(captions="optional"))
    assert "no column 'global'" in line
