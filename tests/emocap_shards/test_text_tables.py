"""Tests tables and lists as other programs write them: without a header, in other encodings, with other names."""

import csv
import json
from dataclasses import replace

import pytest
from emocap_shards.annotation import load_annotation
from emocap_shards.errors import RecordError
from emocap_shards.writing.row import BadRow, ImageFolders, SourceRow
from emocap_shards.writing.selection import with_keys
from emocap_shards.writing.sources import text_tables
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import TableColumns
from emocap_shards.writing.sources.text_tables import (
    WHITE_SPACE,
    DelimitedSource,
    JsonSource,
    TextTableConfig,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pack_cases import bad_rows, packed, table_row
from shard_cases import encode

EMOTION = TableColumns(labels=("emotion",))
IMAGE_EMOTION = TextTableConfig(names=("image", "emotion"))
letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"], exclude_characters=',;|"\ufeff')
words = st.text(letters, min_size=1, max_size=12)
finite = words.filter(lambda word: word.casefold().strip("+-") not in {"inf", "infinity"})
anywhere = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encode(number))
    return folder


def rows(path, columns=EMOTION, form=None, **options):
    return list(open_source(path, columns, text_table=form or TextTableConfig(), **options).rows())


def read(path, columns=EMOTION, form=None, **options):
    """Returns (path of the image, captions, labels) of each row."""
    found = rows(path, columns, form, **options)
    assert [str(each) for each in found if isinstance(each, BadRow)] == []
    return [(each.image.path, *load_annotation(each.annotation)) for each in found]


def refused(path, columns=EMOTION, form=None, **options):
    with pytest.raises(RecordError) as caught:
        rows(path, columns, form, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["txt", "lst", "list"])
def test_a_list_of_names_and_numbers_is_read_if_its_columns_are_named(faces, suffix):
    path = faces / f"list.{suffix}"
    path.write_text("0.png 5\n1.png\t 1\n\n2.png 3\r\n")
    expected = [("0.png", (), {"emotion": 5.0}), ("1.png", (), {"emotion": 1.0}), ("2.png", (), {"emotion": 3.0})]
    assert read(path, EMOTION, IMAGE_EMOTION) == expected
    named = replace(EMOTION, label_names={"5": "sadness", "1": "joy", "3": "fear"})
    assert [labels["emotion"] for _, _, labels in read(path, named, IMAGE_EMOTION)] == ["sadness", "joy", "fear"]


def test_a_list_without_names_of_its_columns_says_what_it_looks_like_and_what_to_give(faces):
    (faces / "list.txt").write_text("0.png 5\n")
    assert refused(faces / "list.txt").endswith(
        "list.txt:1: the first line is '0.png 5', which does not name the needed columns; name the columns in their "
        "order, such as --columns image,emotion."
    )


def test_a_list_with_a_header_needs_no_names(faces):
    for text in ("image emotion\n0.png joy\n", "image,emotion\n0.png,joy\n"):
        (faces / "list.txt").write_text(text)
        assert read(faces / "list.txt") == [("0.png", (), {"emotion": "joy"})]


@pytest.mark.parametrize(("line", "cells"), [("my face.png 5", 3), ("0.png", 1)])
def test_a_line_of_another_number_of_words_is_named(faces, line, cells):
    (faces / "list.txt").write_text(f"0.png 5\n{line}\n")
    (_, bad) = rows(faces / "list.txt", EMOTION, replace(IMAGE_EMOTION, delimiter="space"))
    assert str(bad).endswith(f"list.txt:2: it has {cells} cells, --columns 2")


def test_images_may_have_other_names_on_the_disk(faces):
    (faces / "list.txt").write_text("train/test_0001.jpg 5\nx.01 2\n")
    aligned = replace(EMOTION, image_name="{stem}_aligned.jpg")
    assert [path for path, _, _ in read(faces / "list.txt", aligned, IMAGE_EMOTION)] == [
        "train/test_0001_aligned.jpg",
        "x.01_aligned.jpg",
    ]
    found = rows(faces / "list.txt", replace(EMOTION, image_name="{name}.png"), IMAGE_EMOTION)
    assert [row.key for row in found] == ["train_test_0001_jpg", "x_01"]


@pytest.mark.parametrize("name", ["face.jpg", "{other}.jpg", "../{stem}.jpg", "{stem.__class__}", "{stem}{"])
def test_a_name_of_images_that_cannot_be_is_refused(name):
    with pytest.raises(RecordError, match="image_name"):
        TableColumns(image_name=name)


def test_a_list_and_its_images_may_lie_in_neighbouring_folders(faces):
    (faces.parent / "lists").mkdir()
    path = faces.parent / "lists/list.txt"
    path.write_text("0.png 5\n../faces/1.png 5\n../secret.png 1\n")
    found = rows(path, EMOTION, IMAGE_EMOTION, image_root=faces)
    assert [row.image.locate() for row in found[:2]] == [str(faces / "0.png"), str(faces / "1.png")]
    with pytest.raises(RecordError, match="it leads out of"):
        found[2].image.locate()


def test_only_the_rows_with_some_keys_are_kept_and_the_others_are_counted(faces):
    (faces / "list.txt").write_text("train_0.png 5\ntest_0.png 1\ntrain_1.png 2\n3\n")
    source = with_keys(
        open_source(faces / "list.txt", EMOTION, text_table=replace(IMAGE_EMOTION, delimiter=" ")), "train_*"
    )
    for _ in range(2):
        found = list(source.rows())
        assert [row.key for row in found if isinstance(row, SourceRow)] == ["train_0", "train_1"]
        assert sum(isinstance(row, BadRow) for row in found) == 1
        assert source.left_out == {"whose key is not train_*": 1}


@anywhere
@given(
    delimiter=st.sampled_from([",", "\t", ";", "|"]),
    default=st.sampled_from([",", "\t", WHITE_SPACE]),
    table=st.lists(st.tuples(words, finite), min_size=1, max_size=5),
)
def test_the_delimiter_of_a_table_without_a_header_is_found(faces, delimiter, default, table):
    path = faces / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(table)
    source = DelimitedSource(path, EMOTION, ImageFolders(str(faces), str(faces)), default, IMAGE_EMOTION)
    # A tab separates words, too, so both delimiters fit such a list.
    assume(not (delimiter == "\t" and default == ","))
    assert [row.image.path for row in source.rows()] == [name.replace("\\", "/") for name, _ in table]


def test_no_delimiter_and_several_ones_are_named_with_the_line(faces):
    (faces / "t.csv").write_text("0.png;joy|a\n1.png;joy|b\n")
    assert "semicolon and bar would split the first lines into the 2 columns image, emotion, such as '0.png;joy|a'" in (
        refused(faces / "t.csv", EMOTION, IMAGE_EMOTION)
    )
    assert read(faces / "t.csv", EMOTION, replace(IMAGE_EMOTION, delimiter="semicolon"))[0][2] == {"emotion": "joy|a"}
    (faces / "t.csv").write_text("0.png:joy\n")
    assert "no delimiter would split" in refused(faces / "t.csv", EMOTION, IMAGE_EMOTION)
    assert read(faces / "t.csv", EMOTION, replace(IMAGE_EMOTION, delimiter=":"))[0][2] == {"emotion": "joy"}


def test_a_given_delimiter_also_splits_a_header(faces):
    (faces / "t.csv").write_text("image:emotion,x\n0.png:joy\n")
    form = TextTableConfig(delimiter=":")
    assert "'image', 'emotion,x'" in refused(faces / "t.csv", replace(EMOTION, labels=("mood",)), form)
    assert read(faces / "t.csv", replace(EMOTION, labels=("emotion,x",)), form) == [("0.png", (), {"emotion,x": "joy"})]


@pytest.mark.parametrize(
    ("given_", "letter"), [("tab", "\t"), ("\\t", "\t"), ("comma", ","), (";", ";"), ("space", " ")]
)
def test_a_delimiter_has_a_name_or_is_a_character(given_, letter):
    assert TextTableConfig(delimiter=given_).delimiter == letter


@pytest.mark.parametrize(
    "wrong",
    [
        {"delimiter": ""},
        {"delimiter": "::"},
        {"delimiter": '"'},
        {"delimiter": "\n"},
        {"delimiter": "\u3001"},
        {"names": ("a", "a")},
        {"names": ("a", "")},
        {"encoding": "utf-9"},
        {"encoding": "base64"},
        {"encoding": "a\0b"},
    ],
)
def test_what_no_text_table_has_is_refused(wrong):
    with pytest.raises(RecordError):
        TextTableConfig(**wrong)


@anywhere
@given(
    text=st.text(st.characters(codec="gb18030", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip),
    encoding=st.sampled_from(["gb18030", "utf-16", "utf-16-le", "utf-8", "utf-8-sig"]),
)
def test_a_table_in_any_encoding_is_read(faces, text, encoding):
    # Python's csv reads other line ends of Unicode as letters, and an initial mark is no letter of a text.
    assume("\ufeff" not in text)
    columns = TableColumns()
    with (faces / "t.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([["image", "global"], ["0.png", text]])
    (faces / "t.jsonl").write_text(json.dumps({"image": "0.png", "global": text}, ensure_ascii=False), encoding)
    (faces / "t.json").write_text(json.dumps([{"image": "0.png", "global": text}], ensure_ascii=False), encoding)
    form = TextTableConfig(encoding=encoding)
    for suffix in ("csv", "jsonl", "json"):
        ((_, (caption,), _),) = read(faces / f"t.{suffix}", columns, form)
        assert caption.global_ == text


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_bytes_of_another_encoding_than_the_given_one_are_named_with_the_row(faces, suffix):
    text = {"csv": b"image,global\n0.png,\xff\xff\n", "jsonl": b'{"image": "0.png", "global": "\xff\xff"}\n'}[suffix]
    (faces / f"t.{suffix}").write_bytes(text)
    (bad,) = rows(faces / f"t.{suffix}", TableColumns(), TextTableConfig(encoding="gb18030"))
    assert str(bad).endswith("it has bytes that are not gb18030; correct --encoding, or the row")


def test_a_cut_file_of_utf16_is_one_line(faces):
    (faces / "t.csv").write_bytes("image,global\n0.png,x\n".encode("utf-16") + b"\0")
    assert "t.csv cannot be read" in refused(faces / "t.csv", TableColumns())


def test_a_json_document_of_objects_is_a_table(faces):
    (faces / "t.json").write_text(json.dumps([table_row(0), table_row(1), 3]), encoding="utf-8-sig")
    (one, two, bad) = rows(faces / "t.json", TableColumns())
    assert (one.key, two.key) == ("0", "1")
    assert str(bad).endswith("t.json: object 2: 3 is not a JSON object")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '{"images": [1], "info": {}}',
            "is an object and not a list of objects; its member 'images' is a list: `jq '.images' t.json`",
        ),
        ('{"0.png": "A face."}', "jq -c 'to_entries[] | {image: .key, caption: .value}' t.json > t.jsonl"),
        ('{"image": {"0": "0.png"}}', "write it with `to_json(orient='records')`"),
        ('{"images": [{"id": 1}], "annotations": []}', "its member 'images' is a list"),
        ('{"a": 1}', "is an object and not a list of objects; write one object a line (`jq -c"),
        ("3", "is one value and not a list of objects"),
        ("[1,", "cannot be read: it is not JSON"),
        ("", "cannot be read: it is not JSON"),
    ],
)
def test_another_json_document_is_named_with_what_to_do(faces, text, told):
    (faces / "t.json").write_text(text)
    assert told in refused(faces / "t.json", TableColumns())


def test_json_lines_are_found_under_the_name_of_a_document(faces):
    (faces / "t.json").write_text(json.dumps(table_row(0)) + "\n\n" + json.dumps(table_row(1)) + "\n3\n")
    (one, two, bad) = rows(faces / "t.json", TableColumns())
    assert (one.key, two.key) == ("0", "1")
    assert str(bad).endswith("t.json:4: 3 is not a JSON object")


@pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl"])
def test_a_line_that_is_too_long_ends_the_table(faces, monkeypatch, suffix):
    row = {"csv": "0.png,{}", "txt": "0.png {}", "jsonl": '{{"image": "0.png", "emotion": "{}"}}'}[suffix]
    (faces / f"t.{suffix}").write_text(row.format("joy") + "\n" + row.format("joy" * 99) + "\n")
    monkeypatch.setattr(text_tables, "MAX_LINE_BYTES", 100)
    form = TextTableConfig() if suffix == "jsonl" else IMAGE_EMOTION
    assert f"t.{suffix}:2: the line has 100 or more letters" in refused(faces / f"t.{suffix}", EMOTION, form)


def test_the_header_may_follow_empty_lines_and_have_columns_without_names(faces):
    (faces / "t.csv").write_text("\n\nimage\temotion\t\t\n0.png\tjoy\t\t\n")
    assert read(faces / "t.csv", EMOTION) == [("0.png", (), {"emotion": "joy"})]
    (faces / "t.csv").write_text("image,emotion,emotion\n0.png,joy,fear\n")
    assert "the header names the column 'emotion' twice" in refused(faces / "t.csv", EMOTION)
    (faces / "t.csv").write_text("")
    assert refused(faces / "t.csv", EMOTION).endswith("t.csv is empty.")


def test_a_label_beside_a_column_labels_must_be_a_column(faces):
    (faces / "t.csv").write_text("image,labels\n0.png,joy\n")
    assert "there is no column 'emotion', but 'image', 'labels'" in refused(faces / "t.csv", EMOTION)
    assert read(faces / "t.csv", TableColumns(labels=("labels",))) == [("0.png", (), {"labels": "joy"})]


def test_a_first_line_that_names_a_folder_is_not_taken_for_a_header(faces):
    (faces / "clips/one").mkdir(parents=True)
    (faces / "t.csv").write_text("clips/one 3\n")
    assert "the first line is 'clips/one 3', which does not name the needed columns" in refused(
        faces / "t.csv", EMOTION
    )


def test_a_json_document_in_another_encoding_is_named(faces):
    (faces / "t.json").write_bytes(json.dumps([{"image": "\u8138"}], ensure_ascii=False).encode("gb18030"))
    assert "it is not UTF-8; name the encoding" in refused(faces / "t.json", TableColumns())


def test_what_only_text_tables_have_is_refused_for_other_sources(faces):
    (faces / "t.jsonl").write_text(json.dumps(table_row(0)))
    told = "cannot be used for this kind of source; leave it out"
    assert f"--columns {told}" in refused(faces / "t.jsonl", TableColumns(), IMAGE_EMOTION)
    (faces / "0.json").write_text(json.dumps({"labels": {"a": 1}}))
    assert f"--encoding {told}" in refused(faces, TableColumns(), TextTableConfig(encoding="gbk"))
    assert f"--image-name {told}" in refused(faces, TableColumns(image_name="{stem}.png"))
    with pytest.raises(RecordError, match=f"--image-root {told}"):
        open_source(faces, image_root=faces)
    packed(faces / "t.jsonl", faces / "out")
    assert f"--global, --label {told}" in refused(faces / "out", TableColumns(global_="text", labels=("emotion",)))


def test_a_text_in_the_column_caption_is_the_global_part(faces):
    (faces / "t.csv").write_text("image,caption\n0.png,Glad.\n")
    ((_, (caption,), _),) = read(faces / "t.csv", TableColumns())
    assert (caption.global_, caption.local, caption.summary) == ("Glad.", (), "")
    (bad,) = rows(faces / "t.csv", TableColumns(global_="text"))
    assert "no column 'text'" in str(bad)


def test_long_values_are_cut_in_messages(faces):
    (faces / "t.jsonl").write_text(json.dumps({"image": "0.png", "labels": {"emotion": ["x" * 9000]}}))
    (row,) = rows(faces / "t.jsonl", EMOTION)
    with pytest.raises(Exception, match="label 'emotion' is") as caught:
        load_annotation(row.annotation)
    assert len(str(caught.value)) < 300


def test_the_sources_of_text_are_chosen_by_the_suffix(faces):
    kinds = {"a.txt": DelimitedSource, "A.TSV": DelimitedSource, "a.ndjson": JsonSource, "a.JSON": JsonSource}
    for name, kind in kinds.items():
        (faces / name).touch()
        assert isinstance(open_source(faces / name), kind)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("image,emotion\n0.png,joy \n1.png, joy\n2.png,fear\n", ["joy", "joy", "fear"]),
        ("image, emotion\n0.png , 3\n 1.png, 2\n2.png, 1\n", [3, 2, 1]),
        ("sep=;\r\nimage;emotion\r\n0.png;1\r\n1.png;2\r\n2.png;3\r\n", [1, 2, 3]),
        ('\ufeff"sep=;"\nimage;emotion\n0.png;1\n1.png;2\n2.png;3\n', [1, 2, 3]),
        ("image,emotion,text\n0.png,3,a\n1.png,NA,b\n2.png,N/A,c\n", [3, None, None]),
        ("image,emotion,text\n0.png,joy,a\n1.png,<NA>,b\n2.png,NULL,c\n", ["joy", None, None]),
        ("image,emotion,text\n0.png,None,a\n1.png,-,b\n2.png,x,c\n", ["None", "-", "x"]),
    ],
)
def test_tables_of_excel_and_r_have_the_labels_that_they_show(faces, text, labels):
    (faces / "t.csv").write_text(text)
    columns = TableColumns(labels=("emotion",), global_="text" if "text" in text else "global")
    found = [load_annotation(row.annotation)[1].get("emotion") for row in rows(faces / "t.csv", columns)]
    assert found == labels


@pytest.mark.parametrize("mark", ["nan", "NaN", "None", "NULL", "NA", " ", "null"])
def test_the_mark_of_a_missing_value_is_no_caption(faces, mark):
    (faces / "t.csv").write_text(f"image,text,more\n0.png,{mark},\n1.png,A face.,{mark}\n")
    columns = TableColumns(global_="text", summary="more")
    (one, two) = rows(faces / "t.csv", columns)
    assert not json.loads(one.annotation)["caption"]["global"].strip()
    (caption,) = load_annotation(two.annotation)[0]
    assert (caption.global_, caption.summary.strip()) == ("A face.", "")


def test_labels_that_differ_only_in_case_are_named(faces, caplog):
    (faces / "t.csv").write_text("image,emotion\n0.png,Joy\n1.png,joy\n2.png,fear\n")
    rows(faces / "t.csv", EMOTION)
    assert "values of emotion differ only in case ('Joy', 'joy'): each is a class of its own" in caplog.text
    caplog.clear()
    rows(faces / "t.csv", replace(EMOTION, label_names={"Joy": "joy", "joy": "joy", "fear": "fear"}))
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("C:\\faces\\0.png", "which is not a path on this computer; write paths relative to the table"),
        ("file:///faces/0.png", "which is not a path on this computer"),
        ("~/0.png", "which is not a path on this computer"),
        ("0.PNG", "there is '0.png': correct the name in the table, or give --image-name"),
        ("1", "there is '1.png': correct the name in the table, or give --image-name"),
        ("gr\u00f6\u00dfe.png", "there is a file of this name in another form of Unicode"),
        ("9.png", "9.png cannot be read (No such file or directory)"),
    ],
)
def test_an_image_that_is_not_there_is_named_with_the_file_that_is(faces, name, told):
    (faces / "gro\u0308\u00dfe.png").write_bytes(encode(0))
    (faces / "t.csv").write_text(f"image,emotion\n{name},1\n")
    (bad,) = bad_rows(faces / "t.csv", EMOTION)
    assert told in bad


def test_two_rows_of_one_image_say_where_further_captions_belong(faces):
    (faces / "t.csv").write_text("image,caption\n0.png,a\n0.png,b\n")
    bad = "\n".join(bad_rows(faces / "t.csv"))
    assert "if both rows are captions of one image, put them into one row" in bad


def test_a_coco_document_gives_each_image_all_of_its_captions(faces):
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(3)]
    notes = [{"image_id": image, "caption": text} for image, text in ((1, "a"), (0, "b"), (1, "c"), (9, "d"))]
    (faces / "t.json").write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    (zero, one, two, lost) = rows(faces / "t.json", TableColumns())
    texts = [[caption.global_ for caption in load_annotation(row.annotation)[0]] for row in (zero, one)]
    assert texts == [["b"], ["a", "c"]]
    assert isinstance(two, BadRow)
    assert isinstance(lost, BadRow)


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_numbers_as_python_and_pandas_write_them_are_read(faces, name):
    lines = [f'{{"image": "{place}.png", "text": "a", "age": {age}}}' for place, age in enumerate(("1.5", "NaN"))]
    (faces / name).write_text("\n".join(lines) if name == "t.jsonl" else f"[{','.join(lines)}]")
    found = rows(faces / name, TableColumns(global_="text", labels=("age",)))
    assert [load_annotation(row.annotation)[1] for row in found] == [{"age": 1.5}, {}]


def test_json_that_is_nested_too_deeply_is_a_bad_row(faces):
    (faces / "t.jsonl").write_text('{"a": NaN, "b": ' + "[" * 200_000 + "]" * 200_000 + "}")
    (bad,) = rows(faces / "t.jsonl", TableColumns())
    assert "the line is not JSON" in str(bad)
