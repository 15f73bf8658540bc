"""Tests the file of sentences, and that the default one agrees with the grammar of captions."""

import re

import pytest

from emocap_pretrain.bulk.sentences import SentenceColumnConfig, read_sentences
from emocap_pretrain.captions.grammar.action_units import ACTION_UNITS
from emocap_pretrain.captions.grammar.looks import LOOKS
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.inference.facs import FACS


def test_the_default_file_has_each_action_unit_of_the_grammar_in_its_words():
    found = read_sentences(FACS)
    assert list(found) == [f"AU{unit}" for unit in ACTION_UNITS]
    for unit, column in zip(ACTION_UNITS, found.values(), strict=True):
        looks = (look for look in LOOKS.values() if look.units == (unit,))
        clauses = {clause for look in looks for words in look.clauses.values() for clause in words}
        plain = {re.sub(r" +", " ", clause.replace("{how}", "")).strip() for clause in clauses}
        assert {_clause(sentence) for sentence in column.sentences} <= plain
        assert len(column.sentences) == 2
        assert column.aligned_with is None


def test_no_sentence_of_the_default_file_is_used_twice():
    sentences = [sentence for column in read_sentences(FACS).values() for sentence in column.sentences]
    assert len(set(sentences)) == len(sentences)


def test_the_comments_of_the_default_file_name_the_action_units():
    names = dict(re.findall(r"^AU(\d+):  # (.+)$", FACS.read_text(), re.MULTILINE))
    assert names == {str(unit): each.name for unit, each in ACTION_UNITS.items()}


def _clause(sentence: str) -> str:
    assert sentence.endswith(".")
    return sentence[0].lower() + sentence[1:-1]


def test_a_value_is_a_sentence_a_list_or_a_mapping(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("a: One.\nb: [One., Two.]\nc: {sentences: Three., aligned_with: image}\n12: Four.\n")
    assert read_sentences(file) == {
        "a": SentenceColumnConfig(sentences=("One.",)),
        "b": SentenceColumnConfig(sentences=("One.", "Two.")),
        "c": SentenceColumnConfig(sentences=("Three.",), aligned_with="image"),
        "12": SentenceColumnConfig(sentences=("Four.",)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "valid dictionary"),
        ("- a", "valid dictionary"),
        ("{}", "at least 1"),
        ("a: []", "at least 1"),
        ("a: 3", "a.sentences"),
        ("a: [One., 3]", "a.sentences.1"),
        ("a: {sentences: One., aligned_with: mouth}", "'image' or 'patches'"),
        ("a: {sentence: One.}", "a.sentence"),
        ("a b: One.", "pattern"),
        ("a: One.\na: Two.", "the key 'a' is given twice"),
        ("a: [", "cannot be read"),
        ("a: !!python/object:os.system x", "cannot be read"),
        ("? [a]\n: One.", "s.yaml"),
        ("? {a: b}\n: One.", "s.yaml"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_sentences(tmp_path / "s.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_sentences(tmp_path / "s.yaml")
