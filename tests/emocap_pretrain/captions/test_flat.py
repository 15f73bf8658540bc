"""Tests how flat captions are divided into parts."""

import numpy as np
import pytest
from cli_calls import called
from emocap_shards.annotation import load_annotation
from emocap_shards.library import Library
from emocap_shards.sample import Caption
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emocap_pretrain.captions.flat import divided, sentences
from emocap_pretrain.captions.grammar.recognition import area_of

FLAT = "The man looks surprised. His eyebrows are raised, e.g. by AU1+2.\nHis mouth is open... He wears a hat! Why?"
# Texts in which sentences, abbreviations, numbers, lists and line ends follow each other in any order.
PIECES = [
    "The brows are low.",
    "e.g. ",
    "Dr. X",
    "2. ",
    " ",
    "\n",
    "...",
    "A face",
    "3.5 of 5",
    '"Yes."',
    "!?",
    "眉毛上扬。",
    "x",
]
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=60))


def test_the_first_sentence_is_global_those_of_regions_are_local_and_all_are_the_summary():
    assert divided(Caption(FLAT, (), "")) == Caption(
        "The man looks surprised.",
        ("His eyebrows are raised, e.g. by AU1+2.", "His mouth is open..."),
        "The man looks surprised. His eyebrows are raised, e.g. by AU1+2. His mouth is open... He wears a hat! Why?",
    )


@pytest.mark.parametrize(
    "caption",
    [
        Caption("His  brows are raised.", (), ""),
        Caption("A face. The mouth is open.", ("The mouth is open.",), ""),
        Caption("A face. The mouth is open.", (), "A face."),
        Caption("\n", (), ""),
    ],
    ids=["one sentence", "has a local part", "has a summary", "empty"],
)
def test_other_captions_do_not_change(caption):
    assert divided(caption) is caption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Joy, approx. 3.5 of 5. The lips are apart.", ["Joy, approx. 3.5 of 5.", "The lips are apart."]),
        ("1. A face. 2. The lips are apart.", ["1. A face.", "2. The lips are apart."]),
        ("a man smiling. his brows are raised.", ["a man smiling.", "his brows are raised."]),
        ("A face -\n\n 7", ["A face - 7"]),
        ("... ", ["..."]),
    ],
)
def test_numbers_and_signs_are_no_sentences_of_their_own(text, expected):
    assert sentences(text) == expected


@given(texts)
def test_no_word_is_lost_or_added(text):
    found = sentences(text)
    assert "".join(found).replace(" ", "") == "".join(text.split())
    assert all(found)
    caption = divided(Caption(text, (), ""))
    if len(found) > 1:
        assert caption.summary == " ".join(found)
        assert caption.global_ == found[0]
        assert list(caption.local) == [each for each in found[1:] if area_of(each)]


def test_pack_divides_the_captions_of_any_source_with_flat(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "t.csv").write_text(
        'image,global,further\na.png,"A face. The mouth is open.",A nose. Its eyes are closed.\n'
    )
    for out, option in (("plain", []), ("flat", ["--flat"])):
        assert called("pack", folder / "t.csv", tmp_path / out, "--processes", 1, *option).exit_code == 0
    captions = {}
    for out in ("plain", "flat"):
        (sample,) = Library.open(str(tmp_path / out)).fetch(np.array([0]), direct=True)
        captions[out], _ = load_annotation(sample.annotation)
    assert [each.summary for each in captions["plain"]] == ["", ""]
    assert captions["flat"] == (
        Caption("A face.", ("The mouth is open.",), "A face. The mouth is open."),
        Caption("A nose.", ("Its eyes are closed.",), "A nose. Its eyes are closed."),
    )


def test_a_pack_does_not_resume_with_flat_what_it_began_without(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    table = tmp_path / "t.csv"
    table.write_text("image,global\na.png,A face.\nb.png,A face.\nmissing.png,A face.\n")
    words = ("pack", table, tmp_path / "out", "--processes", 1, "--shard-samples", 1)
    assert called(*words).exit_code != 0
    done = called(*words, "--flat")
    assert done.exit_code != 0
    assert "other options (captions=None instead of 'emocap_pretrain.captions.flat.divided')" in " ".join(
        done.output.split()
    )
