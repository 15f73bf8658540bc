"""Tests the reader of copies whose items are the rows of text files."""

import os
from pathlib import Path

import pytest
from benchmark_trees import image, read, text

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import CaptionTarget, Card
from emocap_pretrain.benchmarks.item import CroppedImage
from emocap_pretrain.benchmarks.layouts import Table
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.choice import fitting, reader_of
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.benchmarks.reading.table import TableReader
from emocap_pretrain.errors import DataError

AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
)


def raf_db(root: Path, rows: str) -> LayoutReader:
    text(root / "EmoLabel/list_patition_label.txt", rows)
    (root / "Image/aligned").mkdir(parents=True)
    return fitting(catalogue.card("raf_db"), root)[1]


def captions(separator: str = "\t", **changes: object) -> TableReader:
    settings: dict[str, object] = {
        "about": "captions",
        "source": "unknown",
        "files": {"test": "set_{fold}/test.txt"},
        "separator": separator,
        "columns": {"file": 0, "caption": 1},
        "media": "clips/{file}",
    }
    target = CaptionTarget(language="English", source="unknown")
    return TableReader(Table.model_validate(settings | changes), target)


def test_the_splits_of_raf_db_share_a_file_and_numbers_begin_with_one(tmp_path: Path) -> None:
    reader = raf_db(tmp_path, "train_00001.jpg 5\ntest_0001.jpg  7 \r\n\ntest_0002.jpg 4")
    for name in ("train_00001", "test_0001", "test_0002"):
        image(tmp_path / f"Image/aligned/{name}_aligned.jpg")
    items, problems = read(reader, tmp_path, "test")
    assert [(item.key, item.class_name) for item in items] == [
        ("Image/aligned/test_0001_aligned.jpg", "neutral"),
        ("Image/aligned/test_0002_aligned.jpg", "happiness"),
    ]
    assert [item.class_name for item in read(reader, tmp_path, "train")[0]] == ["sadness"]
    assert problems == []


def test_a_suffix_is_what_follows_the_last_dot_of_the_name(tmp_path: Path) -> None:
    names = ("a.b/c.tar.gz", "a.b/c", "a/.hidden", "a/c.")
    text(tmp_path / "set_1/test.txt", "".join(f"{name}\tA face.\n" for name in names))
    _, problems = read(captions(media="clips/{stem}.mp4"), tmp_path, "test", 1)
    stems = [str(Path(name).with_suffix("")) if Path(name).suffix else name for name in names]
    assert [each.place for each in problems] == [f"clips/{stem}.mp4" for stem in stems]


def test_missing_images_and_unknown_codes_are_reported_with_their_places(tmp_path: Path) -> None:
    reader = raf_db(tmp_path, "test_1.jpg 0\ntest_2.jpg 1\ntest_3.jpg\n")
    _, problems = read(reader, tmp_path, "test")
    file = "EmoLabel/list_patition_label.txt"
    assert problems == [
        Problem("unknown class code", f"{file}:1: '0'"),
        Problem("missing image", "Image/aligned/test_2_aligned.jpg"),
        Problem("a row has too few cells", f"{file}:3"),
    ]


def test_a_row_of_no_split_is_reported_once(tmp_path: Path) -> None:
    reader = raf_db(tmp_path, "dev_1.jpg 1\n")
    problems = [problem.kind for split in ("train", "test") for problem in read(reader, tmp_path, split)[1]]
    assert problems == ["unknown split"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg"])
def test_a_path_that_leads_out_of_the_folder_is_never_used(name: str, tmp_path: Path) -> None:
    text(tmp_path / "set_1/test.txt", f"{name}\tA face.\n")
    items, problems = read(captions(media="{file}"), tmp_path, "test", 1)
    assert items == []
    assert [problem.kind for problem in problems] == ["path leads out of the folder"]


def test_the_full_release_of_affectnet_is_read_with_quotes_rectangles_and_what_it_leaves_out(tmp_path: Path) -> None:
    rows = (
        '1/a.jpg,10,20,30,40,"1;2",1,0.5,-0.25\n'
        "1/b.jpg,NULL,NULL,30,40,,0,0,0\n"
        "1/c.jpg,0,0,5,5,,10,-2,-2\n"
        "1/d.jpg,-3,0,5,5,,11,-2,-2\n"
        "1/e.jpg,-3,-2,5,5,,6,-2,3\n"
    )
    text(tmp_path / "Manually_Annotated_file_lists/validation.csv", "\ufeff" + AFFECTNET_HEADER + rows)
    for name in "abcde":
        image(tmp_path / f"Manually_Annotated_Images/1/{name}.jpg")
    reader = fitting(catalogue.card("affectnet_8"), tmp_path)[1]
    items, problems = read(reader, tmp_path, "val")
    place = "Manually_Annotated_file_lists/validation.csv"
    images = tmp_path / "Manually_Annotated_Images/1"
    assert [(item.class_name, item.media) for item in items] == [
        ("happiness", CroppedImage(images / "a.jpg", 10, 20, 40, 60)),
        ("anger", CroppedImage(images / "e.jpg", 0, 0, 2, 3)),
    ]
    assert problems == [
        Problem("the rectangle of the face is not given in pixels", f"{place}:3"),
        Problem("left out: no face", f"{place}:4"),
        Problem("unknown class code", f"{place}:5: '11'"),
    ]


def test_numbers_that_are_invalid_out_of_range_or_not_numbers_are_reported(tmp_path: Path) -> None:
    rows = "a.jpg,0,0,5,5,,0,0.5,-0.25\nb.jpg,0,0,5,5,,9,-2,-2\nc.jpg,0,0,5,5,,0,1.5,0\nd.jpg,0,0,5,5,,0,nan,0\n"
    text(tmp_path / "validation.csv", AFFECTNET_HEADER + rows)
    for name in "abcd":
        image(tmp_path / f"Manually_Annotated_Images/{name}.jpg")
    items, problems = read(fitting(catalogue.card("affectnet_va"), tmp_path)[1], tmp_path, "val")
    assert [item.numbers for item in items] == [{"valence": 0.5, "arousal": -0.25}]
    assert [problem.kind for problem in problems] == [
        "left out: no valid number",
        "number out of range",
        "not a number",
    ]


def test_several_faces_of_one_image_have_keys_of_their_own(tmp_path: Path) -> None:
    rows = "ab.jpg 0 1 2 9 8 99.5 3\nab.jpg 1 5 5 5 8 60.0 6\nab.jpg 2 0 0 4 4 60 0\n"
    text(tmp_path / "label/label.lst", rows)
    image(tmp_path / "image/origin/ab.jpg")
    items, problems = read(fitting(catalogue.card("expw"), tmp_path)[1], tmp_path, "all")
    assert [(item.key, item.class_name) for item in items] == [
        ("image/origin/ab.jpg#1", "happiness"),
        ("image/origin/ab.jpg#3", "anger"),
    ]
    assert items[0].media == CroppedImage(tmp_path / "image/origin/ab.jpg", left=2, top=1, right=9, bottom=8)
    assert problems == [Problem("the rectangle of the face is empty", "label/label.lst:2")]


def test_a_column_that_the_header_lacks_is_named(tmp_path: Path) -> None:
    text(tmp_path / "validation.csv", "1/a.jpg,10,20,30,40,,1,0,0\n")
    (tmp_path / "Manually_Annotated_Images").mkdir()
    layout = next(each for each in catalogue.card("affectnet_8").layouts if each.kind == "table")
    reader = reader_of(layout, catalogue.card("affectnet_8").target)
    with pytest.raises(DataError, match=r"no column 'subDirectory_filePath'; its first row is '1/a\.jpg, 10"):
        read(reader, tmp_path, "val")


def test_captions_in_gb18030_are_read_by_tabs_with_their_quotes(tmp_path: Path) -> None:
    text(tmp_path / "set_2/test.txt", '1.mp4\t她说"你好". "A smile.\n', "gb18030")
    text(tmp_path / "clips/1.mp4", "")
    reader = captions(encoding="gb18030")
    items, problems = read(reader, tmp_path, "test", 2)
    assert [item.caption for item in items] == ['她说"你好". "A smile.']
    assert problems == []


def test_a_file_in_another_encoding_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    text(tmp_path / "set_1/test.txt", "1.mp4\t她说\n", "gb18030")
    text(tmp_path / "clips/1.mp4", "")
    with pytest.raises(DataError, match=r"test\.txt is not utf-8 text after line 0"):
        read(captions(), tmp_path, "test", 1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_overrides_the_stated_encoding(encoding: str, tmp_path: Path) -> None:
    text(tmp_path / "set_1/test.txt", "1.mp4\t她说\n", encoding)
    text(tmp_path / "clips/1.mp4", "")
    items, _ = read(captions(encoding="gb18030"), tmp_path, "test", 1)
    assert [item.caption for item in items] == ["她说"]


def test_an_empty_caption_is_a_problem(tmp_path: Path) -> None:
    text(tmp_path / "set_1/test.txt", "1.mp4\t \n")
    assert [problem.kind for problem in read(captions(), tmp_path, "test", 1)[1]] == ["empty caption"]


def test_a_layout_with_folds_needs_the_number_of_a_fold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no fold"):
        read(captions(), tmp_path, "test")


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LONGEST_LINE", 100)
    text(tmp_path / "set_1/test.txt", "1.mp4\tA face.\n2.mp4\t" + "x" * 200)
    text(tmp_path / "clips/1.mp4", "")
    with pytest.raises(DataError, match="line 2 is too long for a table"):
        read(captions(), tmp_path, "test", 1)


def test_a_table_is_streamed_so_that_an_error_at_its_end_comes_after_the_first_rows(tmp_path: Path) -> None:
    text(tmp_path / "set_1/test.txt", "1.mp4\tA face.\n" * 5000)
    with (tmp_path / "set_1/test.txt").open("ab") as file:
        file.write(b"\xff\n")
    text(tmp_path / "clips/1.mp4", "")
    items = captions().items(tmp_path, "test", 1)
    assert not isinstance(next(items), Problem)
    with pytest.raises(DataError, match="is not utf-8 text after line"):
        list(items)


def test_quotes_of_a_csv_file_that_do_not_match_are_an_error(tmp_path: Path) -> None:
    text(tmp_path / "set_1/test.txt", '1.mp4,"A face\n')
    text(tmp_path / "clips/1.mp4", "")
    with pytest.raises(DataError, match="is not a row of a CSV file"):
        read(captions(","), tmp_path, "test", 1)


@pytest.mark.parametrize(
    ("card", "winners"), [("ferplus", ["surprise"]), ("ferplus_most", ["neutral", "surprise", "fear"])]
)
def test_the_folders_of_fer_plus_follow_the_rule_of_their_card(card: str, winners: list[str], tmp_path: Path) -> None:
    rows = (
        'a.png,"(0, 0, 48, 48)",4,0,0,4,1,1,0,0,0,0\n'  # Neither has more than half.
        'b.png,"(0, 0, 48, 48)",0,0,4,1,1,1,1,1,1,0\n'  # The single votes do not count.
        'c.png,"(0, 0, 48, 48)",1,1,0,1,1,1,2,1,2,0\n'
        'd.png,"(0, 0, 48, 48)",0,0,0,0,0,0,0,0,0,10\n'
        'e.png,"(0, 0, 48, 48)",2,0,0,0,0,0,0,0,x,8\n'
    )
    text(tmp_path / "FER2013Test/label.csv", rows)
    for name in "abcde":
        image(tmp_path / f"FER2013Test/{name}.png")
    items, problems = read(fitting(catalogue.card(card), tmp_path)[1], tmp_path, "test")
    assert [item.class_name for item in items] == winners
    kinds = [problem.kind for problem in problems]
    assert kinds[-2:] == ["left out: no face", "votes are not whole numbers"]
    assert len(kinds) + len(winners) == 5


def test_a_pipe_in_place_of_the_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set_1").mkdir()
    os.mkfifo(tmp_path / "set_1/test.txt")
    with pytest.raises(DataError, match=r"test\.txt cannot be read: not a regular file"):
        read(captions(), tmp_path, "test", 1)


def test_a_label_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    card: Card = catalogue.card("expw")
    with pytest.raises(DataError, match=r"label\.lst cannot be read: missing file"):
        read(reader_of(card.layouts[0], card.target), tmp_path, "all")
