import csv
import json
import os
import struct
import uuid
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import ManifestError, RecordError
from emocap_shards.writing import prepare
from emocap_shards.writing.packing import described, pack
from emocap_shards.writing.row import LocalFile, key_of
from emocap_shards.writing.sources import arrow
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns
from pack_cases import bad_rows, folder_of, packed, parts, samples_of, table_of, table_row, write_lines
from PIL import Image
from shard_cases import encode, record, records


@pytest.fixture
def faces(tmp_path):
    """Returns a folder with three images, 0.png to 2.png, and faces.jsonl."""
    table_of(tmp_path, 3)
    return tmp_path


def read_back(url):
    """Returns (image, captions, labels) of each sample."""
    return [(sample.image, *load_annotation(sample.annotation)) for sample in samples_of(url)]


def expected(count=3):
    return [(each.image, (each.caption,), each.labels) for each in records(count)]


def test_json_lines_become_samples_keyed_by_their_images(faces, tmp_path):
    packed(faces / "faces.jsonl", tmp_path / "out")
    assert read_back(tmp_path / "out") == expected()
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["0", "1", "2"]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_delimited_table_becomes_the_same_samples(faces, tmp_path, suffix, delimiter):
    with (faces / f"table.{suffix}").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["image", "global", "local", "summary", "emotion", "valence"])
        for number, (_, (caption,), labels) in enumerate(expected()):
            local = " | ".join(caption.local)
            writer.writerow(
                [f"{number}.png", caption.global_, local, caption.summary, labels["emotion"], labels["valence"]]
            )
    packed(faces / f"table.{suffix}", tmp_path / "out", TableColumns(labels=("emotion", "valence")))
    assert read_back(tmp_path / "out") == expected()


def test_a_folder_with_annotations_becomes_the_same_samples(tmp_path):
    packed(folder_of(tmp_path / "in", 3), tmp_path / "out")
    assert read_back(tmp_path / "out") == expected()


IMAGES = {
    "paths": lambda number: f"{number}.png",
    "bytes": encode,
    "objects with bytes": lambda number: {"bytes": encode(number), "path": f"elsewhere/{number}.png"},
    "objects with paths": lambda number: {"bytes": None, "path": f"{number}.png"},
}


@pytest.mark.parametrize("kind", IMAGES)
def test_parquet_with_images_as_paths_or_bytes_becomes_the_same_samples(faces, tmp_path, kind):
    rows = [table_row(number, image=IMAGES[kind](number)) for number in range(3)]
    pq.write_table(pa.Table.from_pylist(rows[:2]), faces / "part-0.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), faces / "part-1.parquet")
    packed(str(faces / "part-*.parquet"), tmp_path / "out")
    assert read_back(tmp_path / "out") == expected()
    assert open_source(faces / "part-{0..1}.parquet").total == 3


def save_to_disk(folder, rows, features):
    """Writes with pyarrow what `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir()
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (rows[:1], rows[1:]), strict=True):
        table = pa.Table.from_pylist(part)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


FEATURES = {
    "photo": {"_type": "Image"},
    "text": {"dtype": "string", "_type": "Value"},
    "emotion": {"names": ["joy", "fear"], "_type": "ClassLabel"},
}


def test_a_saved_hugging_face_dataset_becomes_samples_with_the_names_of_its_classes(tmp_path):
    rows = [
        {"photo": {"bytes": encode(number), "path": None}, "text": f"Face {number}.", "emotion": label}
        for number, label in enumerate((0, 1, -1))
    ]
    saved = save_to_disk(tmp_path / "saved", rows, FEATURES)
    packed(saved, tmp_path / "out", TableColumns(image="photo", global_="text", labels=("emotion",)))
    assert [sample[2] for sample in read_back(tmp_path / "out")] == [{"emotion": "joy"}, {"emotion": "fear"}, {}]
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["000000000", "000000001", "000000002"]


def test_a_class_without_a_name_is_a_bad_row(tmp_path):
    rows = [{"photo": {"bytes": encode(0), "path": None}, "text": "Glad.", "emotion": 2}] * 2
    saved = save_to_disk(tmp_path / "saved", rows, FEATURES)
    (first, _) = bad_rows(saved, TableColumns(image="photo", global_="text", labels=("emotion",)))
    assert first.endswith("saved: row 0: class 2 has no name; there are 2")


def test_parquet_of_the_datasets_library_has_the_names_of_its_classes(tmp_path):
    rows = [{"image": encode(number), "global": "Glad.", "emotion": number} for number in range(2)]
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), tmp_path / "t.parquet")
    packed(tmp_path / "t.parquet", tmp_path / "out", TableColumns(labels=("emotion",)))
    assert [sample[2]["emotion"] for sample in read_back(tmp_path / "out")] == ["joy", "fear"]


def test_splits_are_told_apart(tmp_path):
    save_to_disk(tmp_path / "test", [table_row(0), table_row(1)], {})
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    with pytest.raises(RecordError, match=r"holds the splits test; name one of them, such as .*/test"):
        open_source(tmp_path)


def test_data_files_of_a_saved_dataset_may_not_lie_elsewhere(tmp_path):
    saved = save_to_disk(tmp_path / "saved", [table_row(0), table_row(1)], {name: {} for name in table_row(0)})
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(RecordError, match="leads out of"):
        list(open_source(saved).rows())


def test_our_own_dataset_is_a_source(tmp_path):
    packed(folder_of(tmp_path / "in", 3), tmp_path / "first")
    assert packed(tmp_path / "first", tmp_path / "second").manifest == packed(tmp_path / "in", tmp_path / "x").manifest


def test_columns_may_have_other_names_and_keys_of_their_own(faces, tmp_path):
    source = write_lines(faces / "t.jsonl", [{"file": "0.png", "text": "Glad.", "id": "a", "mood": "joy"}])
    packed(source, tmp_path / "out", TableColumns(image="file", global_="text", key="id", labels=("mood",)))
    ((_, (caption,), labels),) = read_back(tmp_path / "out")
    assert (caption.global_, caption.local, labels) == ("Glad.", (), {"mood": "joy"})
    assert samples_of(tmp_path / "out")[0].key == "a"


def test_a_named_label_may_lie_in_the_labels_object_of_a_row(faces, tmp_path):
    labels = {"mood": "joy", "valence": 0.5}
    source = write_lines(faces / "t.jsonl", [{"image": "0.png", "global": "Glad.", "labels": labels}])
    packed(source, tmp_path / "one", TableColumns(labels=("mood",)))
    packed(source, tmp_path / "all")
    assert [read_back(tmp_path / name)[0][2] for name in ("one", "all")] == [{"mood": "joy"}, labels]
    with pytest.raises(RecordError, match=r"no column 'mod', but .*'labels.mood', 'labels.valence'"):
        packed(source, tmp_path / "none", TableColumns(labels=("mod",)))


def test_several_captions_of_one_image_are_further_ones(faces, tmp_path):
    rows = [
        table_row(0, **{"global": ["One.", "Two."]}),
        table_row(1, further=["Two.", {"global": "Three.", "local": ["Eyes."], "summary": "S."}]),
        {"image": "2.png", "caption": parts(2), "further": [parts(1)]},
    ]
    packed(write_lines(faces / "t.jsonl", rows), tmp_path / "out")
    captions = [captions for _, captions, _ in read_back(tmp_path / "out")]
    assert [[view.global_ for view in views] for views in captions] == [
        ["One.", "Two."],
        [record(1).caption.global_, "Two.", "Three."],
        [record(2).caption.global_, record(1).caption.global_],
    ]
    assert captions[0][0].summary == record(0).caption.summary
    assert captions[1][2].local == ("Eyes.",)


def test_a_table_may_list_further_captions_in_a_cell(faces, tmp_path):
    (faces / "t.csv").write_text("image,global,further\n0.png,One.,Two. | Three.\n")
    packed(faces / "t.csv", tmp_path / "out")
    ((_, views, _),) = read_back(tmp_path / "out")
    assert [view.global_ for view in views] == ["One.", "Two.", "Three."]


def test_labels_without_a_value_are_left_out_and_yes_is_one(faces, tmp_path):
    rows = [table_row(0, labels={"a": None, "b": True, "c": "x"})]
    packed(write_lines(faces / "t.jsonl", rows), tmp_path / "json")
    assert read_back(tmp_path / "json")[0][2] == {"b": 1.0, "c": "x"}
    (faces / "t.csv").write_text("image,global,a,b,c\n0.png,x,,1e3,1_0\n")
    packed(faces / "t.csv", tmp_path / "csv", TableColumns(labels=("a", "b", "c")))
    assert read_back(tmp_path / "csv")[0][2] == {"b": 1000.0, "c": "1_0"}


def test_a_misnamed_image_gets_the_extension_of_what_it_is(faces, tmp_path):
    (faces / "0.png").write_bytes(encode(0, kind="JPEG"))
    (faces / "1.png").rename(faces / "1.jpeg")
    (faces / "1.jpeg").write_bytes(encode(1, kind="JPEG"))
    packed(write_lines(faces / "t.jsonl", [table_row(0), table_row(1, image="1.jpeg")]), tmp_path / "out")
    assert [sample.extension for sample in samples_of(tmp_path / "out")] == ["jpg", "jpeg"]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("left/face.v1.PNG", "left_face_v1"),
        ("_x_.jpg", "_x_"),
        ("/data/x.webp", "data_x"),
        ("v1.2", "v1_2"),
        ("", ""),
        ("a/b.tar.png", "a_b_tar"),
    ],
)
def test_a_key_is_made_of_a_path(path, key):
    assert key_of(path) == key


BAD_LINES = {
    b"{": "the line is not JSON",
    b"\xff\xfe": "it is not UTF-8; name the encoding of the table",
    b"[1]": "[1] is not a JSON object",
    b'{"image": "0.png"}': "there is no column 'global'",
    b'{"global": "Glad."}': "there is no column 'image'",
    b'{"image": "9.png", "global": "Glad."}': "9.png cannot be read",
    b'{"image": 9, "global": "Glad."}': "the image is int, neither a path nor encoded bytes",
    b'{"image": "0.png", "global": ""}': 'no "global" part',
    b'{"image": "0.png", "global": []}': 'no "global" part',
    b'{"image": "0.png", "global": "x", "local": [1]}': '"local" part',
    b'{"image": "0.png", "global": "x", "labels": [1]}': '"labels" is not an object',
    b'{"image": "0.png", "global": "x", "labels": {"a": []}}': "label 'a' is []",
    b'{"image": "0.png", "global": "x", "further": [7]}': 'no "caption" object',
    b'{"image": "0.png", "global": "x", "key": "a.b"}': "unusable key",
    b'{"image": "0.png", "global": "x", "key": ["a"]}': "unusable key",
    b'{"image": "a\\u0000b", "global": "x", "key": "k"}': "not a path of a file",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(faces, line):
    (faces / "t.jsonl").write_bytes(json.dumps(table_row(0)).encode() + b"\n\n" + line)
    (told,) = bad_rows(faces / "t.jsonl")
    assert told.startswith(f"{faces}/t.jsonl:3: ")
    assert BAD_LINES[line] in told


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"0.png,Glad", "it has 2 cells, the header 3"),
        (b"0.png,Glad,1,2", "it has 4 cells, the header 3"),
        (b"0.png,\xff,1", "it is not UTF-8; name the encoding"),
        (b'0.png,"a"b,1', "the row cannot be read (',' expected after '\"')"),
    ],
)
def test_a_bad_row_of_a_table_is_named_and_the_next_one_is_read(faces, row, reason):
    (faces / "t.csv").write_bytes(b"image,global,valence\n1.png,x,0\n" + row + b"\n2.png,y,1\n9.png,z,1\n")
    first, last = bad_rows(faces / "t.csv", TableColumns(labels=("valence",)))
    assert first.startswith(f"{faces}/t.csv:3: ")
    assert reason in first
    assert last.startswith(f"{faces}/t.csv:5: 9.png cannot be read")


@pytest.mark.parametrize(
    ("row", "line"), [('1.png,"Glad.', 3), (f'1.png,"{"x" * 200_000}', 3), ('1.png,"two\nlines"\n2.png,"Glad.', 5)]
)
def test_a_quote_that_is_never_closed_is_no_single_bad_row(faces, row, line):
    """If it counted as one bad row, all rows after it would be lost silently."""
    (faces / "t.csv").write_text(f"image,global\n0.png,x\n{row}\n" + "2.png,y\n" * 5)
    with pytest.raises(RecordError, match=rf"t\.csv:{line}: a quote that opens here is not closed.*correct this row"):
        bad_rows(faces / "t.csv")


def test_not_a_number_is_no_label_and_infinity_a_bad_row(faces, tmp_path):
    (faces / "t.csv").write_text("image,global,mood\n0.png,x,nan\n1.png,x,NaN\n2.png,x,-inf\n2.png,x,2\n")
    columns = TableColumns(labels=("mood",))
    done = packed(faces / "t.csv", tmp_path / "out", columns, skip_bad=1)
    assert [labels for _, _, labels in read_back(tmp_path / "out")] == [{}, {}, {"mood": 2.0}]
    assert "label 'mood' is -inf" in str(done.skipped[0])


def labels_as_written(url):
    return [json.loads(sample.annotation)["labels"] for sample in samples_of(url)]


def test_a_whole_number_in_a_column_with_gaps_is_written_without_a_fraction(faces, tmp_path):
    (faces / "t.csv").write_text("image,global,mood\n0.png,x,0\n1.png,x,\n2.png,x,3.0\n")
    values = {"image": ["0.png", "1.png", "2.png"], "global": ["x"] * 3, "mood": [0.0, None, 3.0]}
    pq.write_table(pa.table(values), faces / "t.parquet")
    write_lines(faces / "t.jsonl", [table_row(number, mood=mood) for number, mood in enumerate(values["mood"])])
    for suffix in ("csv", "parquet", "jsonl"):
        packed(faces / f"t.{suffix}", tmp_path / suffix, TableColumns(labels=("mood",)))
        written = labels_as_written(tmp_path / suffix)
        assert written == [{"mood": 0}, {}, {"mood": 3}]
        assert {type(label) for labels in written for label in labels.values()} == {int}
        assert read_back(tmp_path / suffix)[2][2] == {"mood": 3.0}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("001", "002", "010"), ["001", "002", "010"]),
        (("0", "7", "A3"), ["0", "7", "A3"]),
        (("100", "001", "2"), ["100", "001", "2"]),
        (("0", "10", "7"), [0, 10, 7]),
        (("-0.5", ".25", "1e-3"), [-0.5, 0.25, 0.001]),
        (("1_000", "2", "3"), ["1_000", "2", "3"]),
        (("12345678901234567890", "1", "2"), ["12345678901234567890", "1", "2"]),
    ],
)
def test_a_column_of_labels_holds_numbers_only_if_each_cell_is_a_plain_one(faces, tmp_path, cells, expected):
    rows = "".join(f"{number}.png,x,{cell}\n" for number, cell in enumerate(cells))
    (faces / "t.csv").write_text(f"image,global,id\n{rows}")
    packed(faces / "t.csv", tmp_path / "out", TableColumns(labels=("id",)))
    assert [labels["id"] for labels in labels_as_written(tmp_path / "out")] == expected


def test_a_whole_number_that_no_float_can_hold_is_a_bad_row(faces):
    table = write_lines(faces / "t.jsonl", [table_row(0), table_row(1, labels={"id": 2**53 + 1})])
    (told,) = bad_rows(table)
    assert "label 'id' is 9007199254740993, a number of more than 53 bits; write it as text" in told


@pytest.mark.parametrize(("delimiter", "suffix"), [("\t", "csv"), (";", "csv"), ("|", "tsv"), (",", "tsv")])
def test_the_delimiter_is_found_by_the_names_of_the_columns(faces, tmp_path, delimiter, suffix):
    rows = [["file", "text"], ["0.png", "One, two; three."], ["1.png", "Four."]]
    with (faces / f"t.{suffix}").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    packed(faces / f"t.{suffix}", tmp_path / "out", TableColumns(image="file", global_="text"))
    assert [captions[0].global_ for _, captions, _ in read_back(tmp_path / "out")] == ["One, two; three.", "Four."]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file;text\n0.png;x\n", r"there is no column 'image', 'global', but 'file', 'text'; say which"),
        (
            "0.png\tA face.\n",
            r"t\.csv:1: the first line is '0\.png\\tA face\.', which does .* such as --columns image,global\.$",
        ),
        (
            "A face.,http://e.invalid/0.jpg\n",
            r"t\.csv:1: the first line is 'A face.*'; URLs are not fetched here: download them with img2d",
        ),
        (",".join(f"c{number}" for number in range(40)), r"but 'c0', .*'c11' and 28 more; say which"),
    ],
)
def test_a_table_whose_columns_cannot_be_found_says_what_it_looks_like(faces, text, told):
    (faces / "t.csv").write_text(text)
    with pytest.raises(RecordError, match=told):
        bad_rows(faces / "t.csv")


def test_labels_beside_a_column_that_may_hold_captions_are_refused_with_a_way_to_pack_them(faces, tmp_path):
    (faces / "t.csv").write_text("image,mood,text\n0.png,joy,Glad.\n")
    with pytest.raises(RecordError, match=r"if the images have labels and no captions, give --captions none"):
        packed(faces / "t.csv", tmp_path / "out", TableColumns(labels=("mood",)))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("https://e.invalid/0.jpg", "the image is the URL 'https://e.invalid/0.jpg'; URLs are not fetched here"),
        ("183 " * 2304, "(9,218 characters), a text of numbers; write the images as files"),
        ("", "the image's cell is empty"),
        ("x" * 9000 + ".png", "(9,006 characters) cannot be read (File name too long)"),
        ("../" * 30 + "a/x.png", "such as with --image-root /"),
        ("/no/such/folder/x.png", "such as with --image-root /no/such/folder"),
    ],
)
def test_a_cell_that_names_no_image_here_is_said_in_a_short_line(faces, value, told):
    (line,) = bad_rows(write_lines(faces / "t.jsonl", [table_row(0, image=value, key="k")]))
    assert told in line
    assert len(line) < 500 + len(str(faces))


def test_a_table_beside_the_folder_of_images_is_read_within_the_image_root(faces, tmp_path):
    folder = faces / "lists"
    folder.mkdir()
    (folder / "t.csv").write_text("image,global\n../0.png,x\n2.png,y\n")
    told = bad_rows(folder / "t.csv")
    assert (
        f"'../0.png' is refused: it leads out of {folder}; if you trust it, allow its folder, such as with" in told[0]
    )
    source = open_source(folder / "t.csv", image_root=faces)
    assert pack(source, tmp_path / "out").manifest.samples == 2
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["0", "2"]
    (folder / "t.csv").write_text("image,global\n../../outside.png,x\n")
    (told,) = bad_rows(folder / "t.csv", image_root=faces)
    assert "is refused: it leads out of" in told


def test_paths_with_the_slashes_of_windows_are_found(faces, tmp_path):
    (faces / "in").mkdir()
    (faces / "in" / "0.png").write_bytes(encode(0))
    (faces / "odd\\1.png").write_bytes(encode(1))
    packed(write_lines(faces / "t.jsonl", [table_row(0, image="in\\0.png")]), tmp_path / "out")
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["in_0"]
    (told,) = bad_rows(write_lines(faces / "t.jsonl", [table_row(0), table_row(1, image="odd\\1.png")]))
    assert "is an unusable key" in told  # The file is there and keeps its name.


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_mark_of_the_byte_order_is_not_text_also_of_utf16(faces, tmp_path, suffix):
    text = {"csv": "image,global\n0.png,Gl\u00fccklich.\n", "jsonl": json.dumps(table_row(0)) + "\n"}[suffix]
    (faces / f"t.{suffix}").write_text(text, encoding="utf-8-sig")
    assert packed(faces / f"t.{suffix}", tmp_path / "out").manifest.samples == 1
    (faces / f"t.{suffix}").write_text(text, encoding="utf-16")
    assert (
        packed(faces / f"t.{suffix}", tmp_path / "wide").manifest
        == packed(faces / f"t.{suffix}", tmp_path / "b").manifest
    )


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_another_encoding_is_said_with_the_row(faces, suffix):
    text = {
        "csv": "image,global\n0.png,\u4e00\u5f20\u8138\n",
        "jsonl": '{"image": "0.png", "global": "\u4e00\u5f20\u8138"}\n',
    }[suffix]
    (faces / f"t.{suffix}").write_text(text, encoding="gb18030")
    (told,) = bad_rows(faces / f"t.{suffix}")
    assert told.startswith(
        f"{faces}/t.{suffix}:{2 if suffix == 'csv' else 1}: it is not UTF-8; name the encoding of the table"
    )


def test_a_missing_column_is_told_before_any_row(faces):
    (faces / "t.csv").write_text("file,text\n0.png,x\n")
    with pytest.raises(RecordError, match="no column 'image', 'global', but 'file', 'text'; say which is which"):
        bad_rows(faces / "t.csv")


def test_paths_that_leave_the_folder_are_refused(faces, tmp_path):
    secret = tmp_path.parent / f"{tmp_path.name}-secret.png"
    secret.write_bytes(encode(7))
    (faces / "link.png").symlink_to(secret)
    names = ["../../etc/passwd", f"../{secret.name}", str(secret), "link.png"]
    told = bad_rows(write_lines(faces / "t.jsonl", [table_row(0, image=name) for name in names]))
    assert len(told) == 4
    assert all("leads out of" in line and "--image-root" in line for line in told)


def test_an_image_root_allows_another_folder_and_nothing_beyond_it(faces, tmp_path):
    (tmp_path / "tables").mkdir()
    rows = [table_row(0), table_row(1, image=str(faces / "1.png")), table_row(2, image="../outside.png")]
    source = write_lines(tmp_path / "tables" / "t.jsonl", rows)
    (told,) = bad_rows(source, image_root=faces)
    assert "../outside.png" in told


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    told = bad_rows(
        write_lines(tmp_path / "t.jsonl", [table_row(0, image="pipe.png"), table_row(0, image="folder.png")])
    )
    assert "not a plain file" in told[0]
    assert "folder.png is a folder and not an image" in told[1]


def test_a_file_of_many_gigabytes_is_not_loaded(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecordError, match="1099511627776 bytes; the limit is"):
        LocalFile(str(tmp_path), "x.png").read()


def bomb(side):
    """Returns a PNG whose header claims `side` x `side` pixels, in a few hundred kilobytes at most."""
    rows = zlib.compress(bytes(side // 8 + 1) * 64)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


BAD_IMAGES = {
    "html": (b"<!DOCTYPE html><html>404</html>", "bad.png: the image is a web page"),
    "gif": (encode(1, kind="GIF"), "bad.png: the image is a GIF, not JPEG, PNG or WebP"),
    "empty": (b"", "bad.png: the image is empty"),
    "bomb": (bomb(10_000), "10000 x 10000, more than"),
    "cut": (encode(1, kind="JPEG", size=64)[:-200], "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_is_none_is_named_with_what_it_is(faces, name):
    data, reason = BAD_IMAGES[name]
    (faces / "bad.png").write_bytes(data)
    (told,) = bad_rows(write_lines(faces / "t.jsonl", [table_row(0), table_row(1, image="bad.png")]))
    assert told.startswith(f"{faces}/t.jsonl:2: ")
    assert reason in told


def test_nothing_of_a_folder_is_lost_unseen(tmp_path):
    folder = folder_of(tmp_path / "in", 3)
    (folder / "0000.json").unlink()
    (folder / "0001.png").unlink()
    (folder / "0001.gif").write_bytes(encode(1, kind="GIF"))
    (folder / "linked").symlink_to(tmp_path)
    told = bad_rows(folder)
    assert len(told) == 3
    assert "0000.json is missing, the annotation of the image; if its folder has the name of its class" in told[0]
    assert "0001.gif: the image is a GIF, not JPEG, PNG or WebP; convert it with --format" in told[1]
    assert "linked: it is a link to a folder" in told[2]


def test_files_of_a_folder_that_are_not_images_are_counted_by_their_extension(tmp_path):
    folder = folder_of(tmp_path / "in", 2)
    for name in ("a.txt", "b.TXT", "c.npy", "README", "._0000.png", "below/._0001.json", "below/d.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "order.txt").write_text("0001.png\n")
    done = packed(folder, tmp_path / "out")
    assert done.manifest.samples == 2
    assert dict(done.left_out) == {".txt": 3, ".npy": 1, "without an extension": 1, "._* of macOS": 2}
    assert described(done.left_out) == "3 .txt, 2 ._* of macOS, 1 .npy, 1 without an extension"


def test_a_name_that_is_not_utf8_is_a_bad_row_or_gets_a_number(tmp_path):
    folder = folder_of(tmp_path / "in", 2)
    for suffix in (b".png", b".json"):
        name = os.fsencode(folder) + b"/0000\xff" + suffix
        Path(os.fsdecode(name)).write_bytes((folder / ("0001" + suffix.decode())).read_bytes())
    # With one sample in a shard, the journal of the second shard contains the bad row.
    assert packed(folder, tmp_path / "out", samples=1, skip_bad=1).manifest.samples == 2
    (bad,) = json.loads((tmp_path / "out/skipped.json").read_bytes())
    assert bad["file"] == "0000?.png"
    assert "unusable key" in bad["reason"]
    assert packed(folder, tmp_path / "numbered", number_keys=True).manifest.samples == 3


def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.\x1b[2Jtxt").write_bytes(b"x")
    with pytest.raises(RecordError, match=r"there is no record to write .* It holds 3 \.\ufffd\[2jtxt\.$"):
        packed(tmp_path, f"memory://{uuid.uuid4().hex}")


def test_a_source_whose_every_row_is_bad_is_refused_with_the_first_reason(tmp_path):
    folder = folder_of(tmp_path / "in", 3)
    for each in folder.glob("*.json"):
        each.unlink()
    expected = r"there is no record to write .* Every row is bad \(3 in all\); the first: .*0000\.json is missing"
    with pytest.raises(RecordError, match=expected):
        packed(folder, f"memory://{uuid.uuid4().hex}", skip_bad=5)


def test_a_picture_of_a_phone_with_a_second_one_inside_is_packed_as_a_jpeg(tmp_path):
    file = tmp_path / "faces" / "a.jpg"
    file.parent.mkdir()
    image = Image.new("RGB", (16, 16), "red")
    image.save(file, "MPO", save_all=True, append_images=[image])
    (tmp_path / "faces" / "a.json").write_text('{"caption": {"global": "A face."}}')
    assert packed(tmp_path / "faces", tmp_path / "out").manifest.samples == 1


def test_what_was_let_go_is_listed_with_the_name_of_its_file(faces, tmp_path):
    (faces / "bad.png").write_bytes(b"")
    table = write_lines(faces / "t.jsonl", [table_row(0), table_row(1, image="bad.png")])
    packed(table, tmp_path / "out", skip_bad=1)
    (listed,) = json.loads((tmp_path / "out" / "skipped.json").read_bytes())
    assert listed == {"where": f"{table}:2", "file": "bad.png", "reason": "the image is empty, a file of 0 bytes"}


def test_a_row_whose_caption_is_unusable_is_listed_with_its_image(faces, tmp_path):
    table = write_lines(faces / "t.jsonl", [table_row(0), table_row(1, labels=3)])
    packed(table, tmp_path / "out", skip_bad=1)
    (listed,) = json.loads((tmp_path / "out" / "skipped.json").read_bytes())
    reason = '"labels" is not an object; if it is a label, name it (--label labels)'
    assert listed == {"where": f"{table}:2", "file": "1.png", "reason": reason}


def test_an_annotation_that_is_no_object_is_a_bad_row(tmp_path):
    folder = folder_of(tmp_path / "in", 2)
    (folder / "0001.json").write_text("[1]")
    (told,) = bad_rows(folder)
    assert told == f"{folder}/0001.png: the annotation is list, not an object"


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    names = ["b.png", "a/z.png", "a.png", "a-b.png", "a/b/c.png", "B.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = [row.image.path for row in open_source(tmp_path).rows()]
    assert found == [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.png"))]


def test_a_file_order_txt_puts_its_images_first(tmp_path):
    folder = folder_of(tmp_path / "in", 4)
    (folder / "order.txt").write_text("0002.png\n0000.png\n0009.png\n")
    assert [row.image.path for row in open_source(folder).rows()] == [
        "0002.png",
        "0000.png",
        "0009.png",
        "0001.png",
        "0003.png",
    ]
    (told,) = bad_rows(folder)
    assert "0009" in told


@pytest.mark.parametrize("name", ["table.xlsx", "missing", "missing.csv", "s3"])
def test_an_unknown_source_is_refused_with_what_there_is(tmp_path, name):
    with pytest.raises(RecordError, match="is not a source; give a folder of image"):
        open_source(tmp_path / name)


def test_a_url_without_a_dataset_is_refused():
    with pytest.raises((RecordError, ManifestError), match=r"holds no manifest\.json; give a folder"):
        open_source("memory://nothing-here")


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecordError, match=r"x\.parquet cannot be read as a Parquet file"):
        list(open_source(tmp_path / "x.parquet").rows())
    with pytest.raises(RecordError, match="matches no file"):
        open_source(tmp_path / "y*.parquet")


def test_a_small_parquet_file_of_one_large_value_is_read_row_by_row(tmp_path):
    """If 64 rows were read at once, as for other files, they would need a gigabyte."""
    table = pa.table({"image": [bytes(1 << 24)] * 64, "global": ["x"] * 64})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", dictionary_pagesize_limit=1 << 26)
    assert (tmp_path / "x.parquet").stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    rows = open_source(tmp_path / "x.parquet").rows()
    assert len(next(rows).image) == 1 << 24
    assert pa.total_allocated_bytes() - before < 1 << 29


@pytest.mark.parametrize(
    "wrong",
    [{"further": 7}, {"further": True}, {"further": {"a": 1}}, {"local": 0}, {"summary": 0}, {"labels": 0}],
)
def test_a_part_of_the_wrong_type_is_a_bad_row(faces, wrong):
    assert len(bad_rows(write_lines(faces / "t.jsonl", [table_row(0, **wrong)]))) == 1


def test_arrow_rows_are_cut_by_their_bytes(monkeypatch):
    monkeypatch.setattr(arrow, "TOGETHER_BYTES", 1000)
    values = [bytes(100), bytes(100)] * 50
    for array in (pa.array(values), pa.array(values).dictionary_encode()):
        batch = pa.record_batch({"image": array})
        assert [row["image"] for row in arrow.rows_of(batch)] == values


def test_bytes_in_a_table_have_the_limit_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_FILE_BYTES", 100)
    pq.write_table(pa.Table.from_pylist([table_row(0, image=encode(0))]), tmp_path / "x.parquet")
    with pytest.raises(RecordError, match=r"the image has \d+ bytes; the limit is 100"):
        packed(tmp_path / "x.parquet", tmp_path / "out")


def test_nothing_is_read_before_it_is_asked_for(faces):
    source = write_lines(faces / "t.jsonl", [table_row(0), {}])
    assert next(open_source(source).rows()).key == "0"
