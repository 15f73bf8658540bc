"""Tests the reader of copies whose items are the records of JSON files."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_trees import image, read, text

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.item import Question
from emocap_pretrain.benchmarks.reading import texts
from emocap_pretrain.benchmarks.reading.choice import fitting, reader_of
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.errors import DataError


def faba(root: Path, records: list[dict[str, Any]], card: str = "faba_emotion", before: str = "") -> LayoutReader:
    name = "eval_au_anno" if card == "faba_au" else "eval_emotion_anno"
    text(root / f"eval/{name}.json", before + json.dumps(records))
    return fitting(catalogue.card(card), root)[1]


def record(label: object, name: str = "a.jpg") -> dict[str, Any]:
    return {"image": f"FABAInstruct/eval/images/{name}", "label": label, "gpt4": "A face.", "landmark": "a.npy"}


def question(options: list[Any], answer: object) -> dict[str, Any]:
    return {
        "QA": {"question": "What?", "options": options, "answer": answer},
        "image": {"image_paths": {"cropped": "a.jpg"}},
    }


def questions(root: Path, records: list[dict[str, Any]]) -> LayoutReader:
    for name in ("basic", "compound"):
        content = {"data": records if name == "basic" else []}
        text(root / f"test/json/en/face_expression_{name}.json", json.dumps(content))
    image(root / "test/output/a.jpg")
    return fitting(catalogue.card("face_human_bench"), root)[1]


def test_a_label_may_be_a_number_or_a_name_and_the_prefix_of_paths_is_cut(tmp_path: Path) -> None:
    image(tmp_path / "eval/images/a.jpg")
    reader = faba(tmp_path, [record(3), record("Anger"), record("surprise")])
    items, problems = read(reader, tmp_path, "eval")
    assert [(item.class_name, item.caption) for item in items] == [
        ("anger", "A face."),
        ("anger", "A face."),
        ("surprise", "A face."),
    ]
    assert len({item.key for item in items}) == 3
    assert problems == []


def test_comments_and_a_byte_order_mark_before_the_document_are_taken(tmp_path: Path) -> None:
    image(tmp_path / "eval/images/a.jpg")
    reader = faba(tmp_path, [record(0)], before="\ufeff// 403 records\n  // of [FABA]\n\n")
    assert [item.class_name for item in read(reader, tmp_path, "eval")[0]] == ["happiness"]


def test_a_comment_inside_of_the_document_is_an_error(tmp_path: Path) -> None:
    reader = faba(tmp_path, [])
    text(tmp_path / "eval/eval_emotion_anno.json", '[\n// "image"\n]')
    with pytest.raises(DataError, match="is not a JSON document in utf-8"):
        read(reader, tmp_path, "eval")


def test_unknown_labels_missing_keys_and_missing_images_are_reported(tmp_path: Path) -> None:
    image(tmp_path / "eval/images/a.jpg")
    lacking = record(0)
    del lacking["label"]
    reader = faba(tmp_path, [record(7), record("Contempt"), lacking, record(None), record(0, "b.jpg"), record(True)])
    file = "eval/eval_emotion_anno.json"
    assert read(reader, tmp_path, "eval") == (
        [],
        [
            Problem("unknown class code", f"{file}:0: '7'"),
            Problem("unknown class code", f"{file}:1: 'Contempt'"),
            Problem("the record has no class", f"{file}:2"),
            Problem("the record has no class", f"{file}:3"),
            Problem("missing image", "eval/images/b.jpg"),
            Problem("the record has no class", f"{file}:5"),
        ],
    )


@pytest.mark.parametrize("records", [[1, "a", None, []], {"a": 3}])
def test_records_that_are_not_objects_are_problems(records: Any, tmp_path: Path) -> None:
    _, problems = read(faba(tmp_path, records), tmp_path, "eval")
    assert {problem.kind for problem in problems} == {"the record has no class"}
    assert len(problems) == len(records)


def test_the_shown_units_are_read_and_those_that_are_not_scored_are_passed(tmp_path: Path) -> None:
    image(tmp_path / "eval/images/a.jpg")
    labels = ["1, 12", "AU4, AU7", "", "12, 99", [25, "26"]]
    items, problems = read(faba(tmp_path, [record(each) for each in labels], "faba_au"), tmp_path, "eval")
    assert [tuple(unit for unit, shown in item.units.items() if shown) for item in items] == [
        (1, 12),
        (4,),
        (),
        (25, 26),
    ]
    assert set(items[0].units) == {1, 2, 4, 5, 6, 10, 12, 17, 24, 25, 26, 43}
    assert problems == [Problem("unknown action unit", "eval/eval_au_anno.json:3: '99'")]


def test_the_questions_of_two_files_are_one_split(tmp_path: Path) -> None:
    reader = questions(tmp_path, [question(["Fear", "Anger"], 0)])
    items, problems = read(reader, tmp_path, "test")
    assert [item.question for item in items] == [Question("What?", ("Fear", "Anger"), 0)]
    assert problems == []


@pytest.mark.parametrize(
    ("options", "answer", "kind"),
    [
        (["Fear", "Anger"], 1, "the right answer is at another position"),
        (["Fear", "Anger"], 5, "the right answer is not among the answers"),
        (["Fear", "Anger"], "Joy", "the right answer is not among the answers"),
        (["Fear", "fear"], 0, "the same answer twice"),
        (["Fear"], 0, "fewer than two answers"),
        (["Fear", {}], 0, "the record has no options"),
    ],
)
def test_a_question_that_cannot_be_scored_is_a_problem(
    options: list[Any], answer: object, kind: str, tmp_path: Path
) -> None:
    reader = questions(tmp_path, [question(options, answer)])
    assert [problem.kind for problem in read(reader, tmp_path, "test")[1]] == [kind]


def test_a_letter_names_the_answer_and_questions_about_several_images_are_left_out(tmp_path: Path) -> None:
    single = {
        "image_paths": ["images/1.png"],
        "question_text": "What?",
        "options": ["sad", "happy"],
        "correct_answer_option": "B",
    }
    several = {
        "image_paths": ["1.png", "2.png"],
        "question_text": "How many?",
        "options": [1, 2],
        "correct_answer_option": "A",
    }
    for name, content in (("single_mcq", single), ("multiple_mcq", several)):
        for source, end in (("affectnet", ""), ("rafdb", "_train")):
            text(tmp_path / f"{source}_{name}{end}.json", json.dumps({"questions": {"1": content}}))
    image(tmp_path / "images/1.png")
    items, problems = read(fitting(catalogue.card("facexbench"), tmp_path)[1], tmp_path, "test")
    assert [item.question and item.question.answers[item.question.right] for item in items] == ["happy", "happy"]
    assert [problem.kind for problem in problems] == ["left out: the record is about several images"] * 2


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg"])
def test_a_path_of_a_record_never_leaves_the_folder(path: str, tmp_path: Path) -> None:
    image(tmp_path / "secret.jpg")
    copy = tmp_path / "copy"
    reader = faba(copy, [{"image": path, "label": 0, "gpt4": "A face."}])
    assert [problem.kind for problem in read(reader, copy, "eval")[1]] == ["path leads out of the folder"]


def test_a_document_without_records_or_of_another_form_is_an_error(tmp_path: Path) -> None:
    reader = questions(tmp_path, [])
    text(tmp_path / "test/json/en/face_expression_basic.json", "[]")
    with pytest.raises(DataError, match="has no list of records under 'data'"):
        read(reader, tmp_path, "test")


def test_a_document_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = faba(tmp_path, [record(0)])
    monkeypatch.setattr(texts, "LARGEST_JSON", 10)
    with pytest.raises(DataError, match="has more than 10 bytes"):
        read(reader, tmp_path, "eval")


def test_a_document_with_many_levels_is_refused(tmp_path: Path) -> None:
    reader = faba(tmp_path, [])
    text(tmp_path / "eval/eval_emotion_anno.json", "[" * 100_000)
    with pytest.raises(DataError, match="is not a JSON document"):
        read(reader, tmp_path, "eval")


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    card = catalogue.card("faba_emotion")
    with pytest.raises(DataError, match="no split 'train'; it has eval"):
        read(reader_of(card.layouts[0], card.target), tmp_path, "train")
