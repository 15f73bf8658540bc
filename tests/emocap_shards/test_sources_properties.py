"""Tests that everything in a table can be read back, and that unpacking and packing keep everything in a dataset."""

import csv
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import AnnotationError, RecordError
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from emocap_shards.writing.prepare import check_key
from emocap_shards.writing.row import BadRow
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns
from emocap_shards.writing.unpack import unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_cases import files_of, packed
from shard_cases import encode

# Text of any script; surrogates are not text, and NUL ends a cell of Python's csv.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
sentences = texts.filter(lambda text: text.strip())
numbers = st.floats(allow_nan=False, allow_infinity=False)
whole_rows = st.fixed_dictionaries(
    {
        "image": st.sampled_from(["0.png", "deep/er/1.png"]),
        "global": sentences,
        "local": st.lists(sentences, max_size=3),
        "summary": texts,
        "further": st.lists(sentences, max_size=2),
        "mood": texts.filter(lambda text: text.strip().lower().lstrip("+-") not in {"nan", "inf", "infinity"}),
        "valence": numbers,
    }
)
COLUMNS = TableColumns(labels=("mood", "valence"))
# What text tables write for a missing value; JSON and Parquet need no such marks.
MARKS = {"NA", "N/A", "<NA>", "NULL", "nan", "NaN", "None", "null"}
text_rows = whole_rows.filter(lambda row: not MARKS & {part.strip() for part in all_texts(row)})


def all_texts(row):
    return (row["global"], row["summary"], row["mood"], *row["local"], *row["further"])


def captions_of(source):
    """Returns (captions, labels) of each row."""
    rows = list(open_source(source, COLUMNS).rows())
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [load_annotation(row.annotation) for row in rows]


def meant(row):
    first = Caption(row["global"], tuple(row["local"]), row["summary"])
    others = (Caption(text, (), "") for text in row["further"])
    return (first, *others), {"mood": row["mood"], "valence": row["valence"]}


@settings(max_examples=60)
@given(st.lists(whole_rows, min_size=1, max_size=5))
def test_json_lines_say_what_was_written(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.jsonl")
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
        assert captions_of(path) == [meant(row) for row in rows]


@settings(max_examples=40)
@given(st.lists(whole_rows, min_size=1, max_size=5))
def test_parquet_says_what_was_written(rows):
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.Table.from_pylist(rows), Path(folder, "t.parquet"))
        assert captions_of(Path(folder, "t.parquet")) == [meant(row) for row in rows]


def as_cell(parts):
    return " | ".join(parts)


@settings(max_examples=60)
@given(st.lists(text_rows, min_size=1, max_size=5), st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_a_delimited_table_says_what_was_written(rows, kind):
    """A label that looks like a number is read as one, an empty cell is no label, "|" separates sentences, and blanks
    around a label do not count.
    """
    suffix, delimiter = kind
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"t.{suffix}")
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(row | {name: as_cell(row[name]) for name in ("local", "further")} for row in rows)
        for row, (captions, labels) in zip(rows, captions_of(path), strict=True):
            assert (captions[0].global_, captions[0].summary) == (row["global"], row["summary"])
            assert captions[0].local == cut(row["local"])
            assert tuple(caption.global_ for caption in captions[1:]) == cut(row["further"])
            assert labels["valence"] == row["valence"]
            mood = row["mood"].strip()
            assert str(labels.get("mood", "")) == mood or labels["mood"] == float(mood)


def cut(parts):
    return tuple(part.strip() for part in as_cell(parts).split("|") if part.strip())


@settings(max_examples=150)
@given(st.binary(max_size=120), st.sampled_from(["jsonl", "csv", "tsv"]))
def test_bytes_of_any_kind_are_rows_or_bad_rows_or_one_error(data, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"t.{suffix}")
        path.write_bytes((b"image,global\n" if suffix == "csv" else b"") + data)
        try:
            for row in open_source(path).rows():
                if not isinstance(row, BadRow):
                    load_annotation(row.annotation)
        except (RecordError, AnnotationError):
            return


def is_key(text):
    try:
        check_key(text)
    except RecordError:
        return False
    return True


keys = st.text(min_size=1, max_size=20).filter(is_key)
captions = st.builds(Caption, sentences, st.lists(sentences, max_size=3).map(tuple), texts)
labels = st.dictionaries(texts, texts | numbers | st.integers(-(2**40), 2**40), max_size=3)
images = st.sampled_from([(encode(1), "png"), (encode(2, kind="JPEG"), "jpg"), (encode(3, kind="JPEG"), "jpeg")])


@st.composite
def datasets(draw):
    names = draw(st.lists(keys, min_size=1, max_size=6, unique_by=str.casefold))
    return [
        Record(name, *draw(images), draw(captions), draw(labels), tuple(draw(st.lists(captions, max_size=2))))
        for name in names
    ]


@settings(max_examples=40)
@given(datasets(), st.integers(1, 4))
def test_unpacked_and_packed_again_a_dataset_is_the_same_bytes(records, samples):
    with tempfile.TemporaryDirectory() as folder:
        write_shards(records, f"{folder}/first", samples_per_shard=samples)
        unpack(f"{folder}/first", f"{folder}/unpacked")
        packed(f"{folder}/unpacked", f"{folder}/second", samples=samples)
        assert files_of(Path(folder, "second")) == files_of(Path(folder, "first"))
