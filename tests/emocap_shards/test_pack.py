import json
from dataclasses import replace

import pytest
from emocap_shards.errors import RecordError
from emocap_shards.pack import Columns, records_from
from emocap_shards.stream import Stream
from emocap_shards.writer import write_shards
from shard_cases import encode, record


@pytest.fixture
def faces(tmp_path):
    """A folder with three images, 0.png to 2.png."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(number))
    return tmp_path


def row(number, **changes):
    caption = record(number).caption
    parts = {"global": caption.whole, "local": list(caption.local), "summary": caption.summary}
    return {"image": f"{number}.png", **parts, "labels": dict(record(number).labels)} | changes


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def expected():
    return [replace(record(number), key=str(number)) for number in range(3)]


def test_json_lines_become_records(faces):
    assert list(records_from(write_lines(faces / "table.jsonl", map(row, range(3))))) == expected()


def test_a_csv_becomes_the_same_records(faces):
    lines = ["image,global,local,summary,emotion,valence"]
    for each in expected():
        caption, labels = each.caption, each.labels
        local = " | ".join(caption.local)
        summary = f'"{caption.summary}"'
        lines.append(f"{each.key}.png,{caption.whole},{local},{summary},{labels['emotion']},{labels['valence']}")
    (faces / "table.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert list(records_from(faces / "table.csv", Columns(labels=("emotion", "valence")))) == expected()


def test_a_folder_with_annotations_becomes_the_same_records(faces):
    for number in range(3):
        parts = row(number)
        caption = {part: parts[part] for part in ("global", "local", "summary")}
        (faces / f"{number}.json").write_text(json.dumps({"caption": caption, "labels": parts["labels"]}))
    assert list(records_from(faces)) == expected()


def test_columns_may_have_other_names_and_keys_of_their_own(faces):
    source = write_lines(faces / "t.jsonl", [{"file": "0.png", "text": "Glad.", "id": "a", "mood": "joy"}])
    columns = Columns(image="file", whole="text", key="id", labels=("mood",))
    (only,) = records_from(source, columns)
    assert (only.key, only.caption.whole, only.caption.local, only.labels) == ("a", "Glad.", (), {"mood": "joy"})


def test_images_of_one_name_in_two_folders_have_different_keys(faces):
    for name in ("left", "right"):
        (faces / name).mkdir()
        (faces / name / "face.v1.PNG").write_bytes(encode(1))
    rows = [row(0, image=f"{name}/face.v1.PNG") for name in ("left", "right")]
    assert [each.key for each in records_from(write_lines(faces / "t.jsonl", rows))] == [
        "left_face_v1",
        "right_face_v1",
    ]


def test_packed_records_come_back_from_the_shards(faces):
    write_shards(records_from(write_lines(faces / "t.jsonl", map(row, range(3)))), faces / "shards")
    stream = Stream(url=str(faces / "shards"), global_batch=3, shuffle=False)
    assert [sample.caption for sample in stream.read(range(3))] == [each.caption for each in expected()]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "the line is no JSON"),
        (b"\xff\xfe", "the line is no JSON"),
        (b"[1]", "no JSON object"),
        (b'{"image": "0.png"}', "no column 'global'"),
        (b'{"global": "Glad."}', "no column 'image'"),
        (b'{"image": "9.png", "global": "Glad."}', "9.png cannot be read"),
        (b'{"image": "0.png", "global": ""}', 'no "global" part'),
        (b'{"image": "0.png", "global": "x", "local": [1]}', '"local" part'),
    ],
)
def test_an_unusable_line_is_named_by_file_and_number(faces, line, reason):
    (faces / "t.jsonl").write_bytes(json.dumps(row(0)).encode() + b"\n\n" + line)
    with pytest.raises(RecordError, match=rf"t.jsonl:3: .*{reason}"):
        list(records_from(faces / "t.jsonl"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"0.png,Glad", "label 'valence' is None"), (b"0.png", 'no "global"'), (b"0.png,\xff,1", "save it as UTF-8")],
)
def test_an_unusable_csv_row_is_named_by_file_and_number(faces, line, reason):
    (faces / "t.csv").write_bytes(b"image,global,valence\n" + line)
    with pytest.raises(RecordError, match=rf"t.csv:\d: .*{reason}"):
        list(records_from(faces / "t.csv", Columns(labels=("valence",))))


def test_an_image_without_annotation_is_named(faces):
    with pytest.raises(RecordError, match=r"0.json cannot be read; every image needs an annotation"):
        list(records_from(faces))


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"no folder, no \.jsonl and no \.csv"):
        records_from(tmp_path / "table.xlsx")


def test_nothing_is_read_before_it_is_asked_for(faces):
    source = write_lines(faces / "t.jsonl", [row(0), {}])
    assert next(iter(records_from(source))).key == "0"
