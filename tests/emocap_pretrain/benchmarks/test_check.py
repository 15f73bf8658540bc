"""Tests that a wrong copy of a benchmark is told apart from a right one, by a copy of RAF-DB with a few images."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_calls import called
from PIL import Image

from emocap_pretrain.benchmarks.card import Card
from emocap_pretrain.benchmarks.catalogue import card, names
from emocap_pretrain.benchmarks.check import CheckedCopy, check
from emocap_pretrain.errors import ConfigError

CODES = {"surprise": 1, "fear": 2, "disgust": 3, "happiness": 4, "sadness": 5, "anger": 6, "neutral": 7}
TEST = {"surprise": 2, "fear": 1, "disgust": 3, "happiness": 6, "sadness": 4, "anger": 5, "neutral": 7}
TRAIN = dict.fromkeys(CODES, 1)


@pytest.fixture
def raf(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Returns the card of RAF-DB with the sizes of the copies below."""
    found = card("raf_db")
    sizes = {"train": TRAIN, "test": TEST}
    splits = {
        name: each.model_copy(update={"samples": sum(sizes[name].values()), "by_class": sizes[name]})
        for name, each in found.splits.items()
    }
    small = found.model_copy(update={"splits": splits})
    monkeypatch.setattr(
        "emocap_pretrain.benchmarks.catalogue.card", lambda name: small if name == "raf_db" else card(name)
    )
    return small


def copy(root: Path, codes: Mapping[str, int] = CODES, *, test: Mapping[str, int] = TEST) -> Path:
    """Writes a copy in the layout of the authors.

    Args:
        root: The folder of the copy.
        codes: The number that the file of labels has for each class.
        test: The number of images of each class in the split `test`.
    """
    lines: list[str] = []
    folder = root / "Image" / "aligned"
    folder.mkdir(parents=True)
    for split, sizes in (("train", TRAIN), ("test", test)):
        classes = [name for name, count in sizes.items() for _ in range(count)]
        for number, name in enumerate(classes):
            stem = f"{split}_{number:05d}"
            Image.new("RGB", (4, 4)).save(folder / f"{stem}_aligned.jpg")
            lines.append(f"{stem}.jpg {codes[name]}\n")
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines))
    return root


def ran(*words: object, code: int = 0) -> str:
    done = called("benchmarks", *words)
    assert done.exit_code == code, done.output
    return done.stdout if code < 2 else done.stderr


def different(found: CheckedCopy) -> list[str]:
    return [
        f"{split.name}: {each.text}" for split in found.splits for each in split.findings if each.verdict == "different"
    ]


def test_a_right_copy_differs_in_nothing(raf: Card, tmp_path: Path) -> None:
    found = check(raf, copy(tmp_path))
    assert different(found) == []
    assert found.is_right
    assert {split.name: split.items for split in found.splits} == {"train": 7, "test": 28}
    assert [split.by_class for split in found.splits] == [TRAIN, TEST]


def test_a_copy_with_another_class_order_is_told(raf: Card, tmp_path: Path) -> None:
    """Happiness and sadness are exchanged. The reader cannot notice it, because the file of labels has only numbers."""
    codes = {**CODES, "happiness": CODES["sadness"], "sadness": CODES["happiness"]}
    assert different(check(raf, copy(tmp_path, codes))) == [
        "test: the classes have another order: happiness has the number of sadness, sadness has the number of happiness"
    ]


def test_a_missing_split_missing_images_and_other_sizes_are_told(raf: Card, tmp_path: Path) -> None:
    root = copy(tmp_path, test={**TEST, "fear": 0})
    (root / "Image" / "aligned" / "train_00003_aligned.jpg").unlink()
    told = "\n".join(different(check(raf, root)))
    assert "train: 6 items, but 7 were" in told
    assert "1 x missing image, such as" in told
    assert "test: no item has the class fear" in told
    assert "fear 0 instead of 1" in told
    labels = root / "EmoLabel" / "list_patition_label.txt"
    labels.write_text("".join(line for line in labels.read_text().splitlines(True) if line.startswith("train")))
    assert any(line.startswith("test: ") for line in different(check(raf, root)))


def test_an_unknown_size_is_unchecked_and_never_wrong(raf: Card, tmp_path: Path) -> None:
    splits = {name: each.model_copy(update={"source": "unknown"}) for name, each in raf.splits.items()}
    found = check(raf.model_copy(update={"splits": splits}), copy(tmp_path, test={**TEST, "fear": 9}))
    assert found.is_right
    assert {each.verdict for split in found.splits for each in split.findings} == {"unchecked"}


def test_a_folder_of_another_benchmark_is_refused(raf: Card, tmp_path: Path) -> None:
    (tmp_path / "Train" / "Happy").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is not a copy of RAF-DB, basic expressions: .* is missing"):
        check(raf, tmp_path)


def test_the_command_says_what_differs_in_its_exit_code(raf: Card, tmp_path: Path) -> None:
    right = copy(tmp_path / "right")
    assert "ok" in ran("check", "raf_db", right)
    wrong = copy(tmp_path / "wrong", test={**TEST, "fear": 3})
    done = ran("check", "raf_db", wrong, code=1)
    assert "DIFFERENT" in done
    told: dict[str, Any] = json.loads(ran("check", "raf_db", wrong, "--json", code=1))
    assert told["is_right"] is False
    assert "is not a folder" in ran("check", "raf_db", tmp_path / "nowhere", code=2)


def test_an_unknown_benchmark_is_refused_with_a_similar_name() -> None:
    assert "there is no benchmark 'raf-db'; did you mean raf_db?" in ran("show", "raf-db", code=2)


def test_every_card_is_listed_and_shown() -> None:
    listed = json.loads(ran("list", "--json"))
    assert [each["name"] for each in listed] == list(names())
    assert len(listed) >= 30
    for name in names():
        assert json.loads(ran("show", name, "--json"))["name"] == name


@pytest.mark.parametrize("name", names())
def test_a_shown_card_has_80_columns_and_names_the_source_of_licence_access_and_citation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found, shown = card(name), ran("show", name)
    assert max(map(len, shown.splitlines())) <= 80
    # Texts are compared without spaces, because a path that is longer than a line is divided.
    facts, sources = ("".join(part.replace("│", "").split()) for part in shown.split("\nSources\n"))
    numbers = re.findall(r"\[\d+\]", sources)
    assert numbers == [f"[{number + 1}]" for number in range(len(numbers))]
    assert set(re.findall(r"\[(?:\d+|unchecked)\]", facts)) == set(re.findall(r"\[(?:\d+|unchecked)\]", sources))
    for fact in (found.licence, found.obtain, found.citation):
        _, _, rest = facts.partition("".join(fact.text.split()))
        mark = rest[: rest.index("]") + 1]
        if fact.source == "unknown":
            assert mark == "[unchecked]"
        else:
            assert f"{mark}{fact.source}".replace(" ", "") in sources
