"""Tests the reader of copies of CK+, whose annotation files name the expression of the last frames of a sequence."""

from pathlib import Path

from benchmark_trees import image, read, text

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem


def ck_plus(root: Path, labels: dict[str, str], frames: int = 5) -> LayoutReader:
    for sequence, content in labels.items():
        name = sequence.replace("/", "_")
        text(root / f"Emotion/{sequence}/{name}_00000011_emotion.txt", content)
        for number in range(1, frames + 1):
            image(root / f"cohn-kanade-images/{sequence}/{name}_{number:08d}.png")
    return fitting(catalogue.card("ck_plus"), root)[1]


def test_the_last_three_frames_have_the_expression_and_the_person_is_the_group(tmp_path: Path) -> None:
    reader = ck_plus(tmp_path, {"S005/001": "   3.0000000e+00\n", "S010/002": "7"})
    items, problems = read(reader, tmp_path, "all")
    assert [(Path(item.key).name, item.class_name, item.group) for item in items] == [
        ("S005_001_00000003.png", "disgust", "S005"),
        ("S005_001_00000004.png", "disgust", "S005"),
        ("S005_001_00000005.png", "disgust", "S005"),
        ("S010_002_00000003.png", "surprise", "S010"),
        ("S010_002_00000004.png", "surprise", "S010"),
        ("S010_002_00000005.png", "surprise", "S010"),
    ]
    assert problems == []


def test_a_sequence_without_an_annotation_is_not_part_of_the_benchmark(tmp_path: Path) -> None:
    reader = ck_plus(tmp_path, {"S005/001": "3"})
    image(tmp_path / "cohn-kanade-images/S005/002/S005_002_00000001.png")
    (tmp_path / "Emotion/S005/002").mkdir()
    assert len(read(reader, tmp_path, "all")[0]) == 3


def test_labels_that_are_unknown_left_out_or_empty_are_reported(tmp_path: Path) -> None:
    reader = ck_plus(tmp_path, {"S001/001": "8", "S002/001": "0.0", "S003/001": "", "S004/001": "3 4"})
    kinds = [problem.kind for problem in read(reader, tmp_path, "all")[1]]
    left_out = "left out: neutral is not a class of this protocol"
    assert kinds == ["unknown class code", left_out, "unknown class code", "unknown class code"]


def test_missing_and_too_few_frames_are_reported(tmp_path: Path) -> None:
    reader = ck_plus(tmp_path, {"S001/001": "3"}, frames=2)
    text(tmp_path / "Emotion/S002/001/S002_001_00000011_emotion.txt", "3")
    (tmp_path / "cohn-kanade-images/S003/001").mkdir(parents=True)
    text(tmp_path / "Emotion/S003/001/S003_001_00000011_emotion.txt", "3")
    assert read(reader, tmp_path, "all")[1] == [
        Problem("too few frames", "cohn-kanade-images/S001/001: 2"),
        Problem("missing folder of frames", "cohn-kanade-images/S002/001"),
        Problem("no frames", "cohn-kanade-images/S003/001"),
    ]


def test_an_annotation_at_an_unexpected_place_is_reported(tmp_path: Path) -> None:
    reader = ck_plus(tmp_path, {"S001/001": "3", "S001/x": "3"})
    assert [problem.kind for problem in read(reader, tmp_path, "all")[1]] == [
        "left out: its name does not fit the layout"
    ]
