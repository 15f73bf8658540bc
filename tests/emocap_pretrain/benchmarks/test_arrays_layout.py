"""Tests the reader of copies of AffectNet of 2021, whose labels are files of one value."""

from pathlib import Path

import numpy as np
import pytest
from benchmark_trees import image, read

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import LayoutReader, Problem
from emocap_pretrain.errors import DataError


def affectnet(root: Path, labels: dict[str, object], images: str, card: str = "affectnet_7") -> LayoutReader:
    (root / "val_set/annotations").mkdir(parents=True)
    (root / "val_set/images").mkdir(parents=True)
    for name, value in labels.items():
        np.save(root / "val_set/annotations" / name, np.array(value))
    for stem in images.split():
        image(root / f"val_set/images/{stem}.jpg")
    return fitting(catalogue.card(card), root)[1]


def test_values_may_be_texts_or_numbers_and_images_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    labels: dict[str, object] = {"10_exp.npy": "3", "9_exp.npy": 0, "2_exp.npy": [6.0], "9_lnd.npy": np.zeros(136)}
    items, problems = read(affectnet(tmp_path, labels, "2 9 10"), tmp_path, "val")
    assert [(item.key, item.class_name) for item in items] == [
        ("val_set/images/2.jpg", "anger"),
        ("val_set/images/9.jpg", "neutral"),
        ("val_set/images/10.jpg", "surprise"),
    ]
    assert problems == []


def test_valence_and_arousal_are_two_files(tmp_path: Path) -> None:
    labels: dict[str, object] = {"1_val.npy": "0.25", "1_aro.npy": -0.5, "2_val.npy": "-2", "2_aro.npy": "-2"}
    items, problems = read(affectnet(tmp_path, labels, "1 2", "affectnet_va"), tmp_path, "val")
    assert [item.numbers for item in items] == [{"valence": 0.25, "arousal": -0.5}]
    assert problems == [Problem("left out: no valid number", "val_set/images/2.jpg")]


def test_an_image_without_a_label_and_a_label_without_an_image_are_problems(tmp_path: Path) -> None:
    _, problems = read(affectnet(tmp_path, {"1_exp.npy": 0, "2_exp.npy": 7, "4_exp.npy": 8}, "2 3 4"), tmp_path, "val")
    assert problems == [
        Problem("missing image", "val_set/images/1.jpg"),
        Problem("left out: contempt is not a class of AffectNet-7", "val_set/images/2.jpg"),
        Problem("missing label", "val_set/annotations/3_exp.npy"),
        Problem("left out: no expression", "val_set/images/4.jpg"),
    ]


@pytest.mark.parametrize("value", [[0, 1], 1j, True, np.array([{}], dtype=object)])
def test_a_file_that_is_not_one_number_or_text_is_a_problem(value: object, tmp_path: Path) -> None:
    reader = affectnet(tmp_path, {}, "1")
    np.save(tmp_path / "val_set/annotations/1_exp.npy", np.array(value), allow_pickle=True)
    assert [problem.kind for problem in read(reader, tmp_path, "val")[1]] == ["unreadable label"]


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{'descr': 'x'"])
def test_a_file_that_is_not_an_array_is_a_problem(content: bytes, tmp_path: Path) -> None:
    reader = affectnet(tmp_path, {}, "1")
    (tmp_path / "val_set/annotations/1_exp.npy").write_bytes(content)
    assert [problem.kind for problem in read(reader, tmp_path, "val")[1]] == ["unreadable label"]


def test_an_array_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    reader = affectnet(tmp_path, {"1_exp.npy": np.zeros(100_000)}, "1")
    assert [problem.kind for problem in read(reader, tmp_path, "val")[1]] == ["unreadable label"]


def test_a_missing_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_set is missing"):
        read(affectnet(tmp_path, {"1_exp.npy": 0}, "1"), tmp_path, "train")
