"""Tests the attributes of persons: they are read from three places, and a copy may lack them."""

from pathlib import Path

import pytest
from benchmark_trees import text

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.attributes import AttributeLines
from emocap_pretrain.benchmarks.item import Item
from emocap_pretrain.benchmarks.reading.attribute_reader import AttributeReader
from emocap_pretrain.errors import DataError

LANDMARKS = "1\t2\n" * 5


def reader(name: str, root: Path) -> AttributeReader:
    attributes = catalogue.card(name).attributes
    assert attributes is not None
    return AttributeReader(attributes, root)


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("Image/aligned/test_0001_aligned.jpg", "Annotation/manual/test_0001_manu_attri.txt"),
        ("Image/original/test_0001.jpg", "Annotation/manual/test_0001_manu_attri.txt"),
        ("basic/Image/aligned/train_00001_aligned.jpg", "basic/Annotation/manual/train_00001_manu_attri.txt"),
    ],
)
def test_raf_db_has_a_text_file_for_each_image(key: str, file: str, tmp_path: Path) -> None:
    assert reader("raf_db", tmp_path).of(Item(key, tmp_path)) == {}
    text(tmp_path / file, f"{LANDMARKS}1\r\n2\n4\n")
    found = reader("raf_db", tmp_path).of(Item(key, tmp_path))
    assert found == {"gender": "female", "race": "Asian", "age": "70+"}
    text(tmp_path / file, f"{LANDMARKS}7\n0")  # The code of the gender has no meaning, and the age is missing.
    assert reader("raf_db", tmp_path).of(Item(key, tmp_path)) == {"race": "Caucasian"}
    assert reader("raf_db", tmp_path).of(Item("train/1/test_0001.jpg", tmp_path)) == {}


def test_crema_d_has_a_table_of_persons(tmp_path: Path) -> None:
    item = Item("VideoFlash/1047_DFA_ANG_XX.flv", tmp_path, group="1047")
    assert reader("crema_d", tmp_path).of(item) == {}
    header = '"ActorID","Age","Sex","Race","Ethnicity"\n'
    text(tmp_path / "VideoDemographics.csv", f'{header}1001,51,"Male"\n1047,22,"Female","Unknown","Hispanic"\n')
    found = reader("crema_d", tmp_path).of(item)
    assert found == {"age": 22.0, "gender": "Female", "race": "Unknown", "ethnicity": "Hispanic"}
    assert reader("crema_d", tmp_path).of(Item("x", tmp_path, group="1001")) == {}  # Its row is too short.
    text(tmp_path / "VideoDemographics.csv", "ActorID,Age\n1047,22\n")
    with pytest.raises(DataError, match="has no column 'Sex'"):
        reader("crema_d", tmp_path).of(item)


def test_the_card_of_ravdess_lists_the_persons(tmp_path: Path) -> None:
    of = reader("ravdess", tmp_path).of
    genders = [of(Item(str(actor), tmp_path, group=f"{actor:02d}"))["gender"] for actor in range(1, 25)]
    assert genders == ["male", "female"] * 12
    assert of(Item("x", tmp_path)) == {}


def test_no_key_leads_out_of_the_copy(tmp_path: Path) -> None:
    text(tmp_path / "secret.txt", "a\n")
    (tmp_path / "copy").mkdir()
    attributes = AttributeLines(pattern="(?P<stem>.*)", file="{stem}.txt", lines={"gender": 1}, source="unknown")
    assert AttributeReader(attributes, tmp_path / "copy").of(Item("../secret", tmp_path)) == {}
    assert AttributeReader(attributes, tmp_path).of(Item("secret", tmp_path)) == {"gender": "a"}
