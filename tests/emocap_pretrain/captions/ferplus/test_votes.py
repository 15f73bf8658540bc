import re

import pytest

from emocap_pretrain.captions.ferplus.votes import emotion_state, is_face, majority
from emocap_pretrain.captions.grammar.action_units import Band, Degree
from emocap_pretrain.captions.grammar.emotions import EMOTIONS
from emocap_pretrain.captions.grammar.looks import LOOKS, Region, RegionState
from emocap_pretrain.captions.grammar.sentences import Wording, global_sentence, summary

SMILE = (
    RegionState(Region.LIP_CORNERS, LOOKS["lip_corners_raised"], (Band.STRONG,)),
    RegionState(Region.CHEEKS, LOOKS["cheeks_raised"], (Band.SLIGHT,)),
)


def votes(**given: int) -> dict[str, int]:
    return {**dict.fromkeys((*EMOTIONS, "unknown", "NF"), 0), **given}


def described(*, key: str = "k", **given: int) -> str:
    return global_sentence(emotion_state(votes(**given)), Wording(key))


@pytest.mark.parametrize(
    ("given", "label"),
    [
        ({"happiness": 9, "neutral": 1}, "happiness"),
        ({"happiness": 5, "neutral": 5}, ""),
        ({"sadness": 5, "neutral": 3, "fear": 1, "anger": 1}, "sadness"),  # 5 of 8, single votes dropped
        ({"neutral": 4, "unknown": 6}, ""),
        ({"NF": 10}, ""),
    ],
)
def test_the_label_is_the_majority_without_outliers(given: dict[str, int], label: str) -> None:
    assert majority(votes(**given)) == label


def test_a_face_that_most_people_cannot_read_is_left_out() -> None:
    assert is_face(votes(sadness=5, unknown=3, neutral=2))
    assert not is_face(votes(sadness=4, unknown=4, neutral=2))
    assert not is_face(votes(NF=8, neutral=2))


def test_agreement_is_a_high_degree_if_the_face_shows_it() -> None:
    assert emotion_state(votes(happiness=9, neutral=1)).degree is Degree.HIGH
    assert emotion_state(votes(happiness=9, neutral=1), expressive=False).degree is Degree.MID


def test_nine_votes_for_happiness_are_described_as_clearly_happy() -> None:
    words = {described(key=str(number), happiness=9, neutral=1) for number in range(40)}
    assert any("clearly happy" in sentence for sentence in words)
    assert not any("neutral" in sentence or "faint" in sentence for sentence in words)


def test_sadness_with_neutral_votes_is_described_as_close_to_neutral() -> None:
    emotion = emotion_state(votes(sadness=5, neutral=4, anger=1))
    assert (emotion.name, emotion.second, emotion.degree) == ("sadness", "neutral", Degree.LOW)
    assert any("close to neutral" in global_sentence(emotion, Wording(str(number))) for number in range(20))
    assert "sadness close to neutral" in summary(emotion, (), Wording("k"))


def test_an_even_mixture_names_both() -> None:
    sentence = described(fear=4, surprise=5)
    assert "alarm" in sentence
    assert "surprise" in sentence
    assert "fear" in sentence


def test_an_even_mixture_without_its_own_noun_also_names_both() -> None:
    sentence = described(contempt=5, fear=4)
    assert "contempt" in sentence
    assert "fear" in sentence


def test_an_ambiguous_expression_is_described_as_such() -> None:
    words = {described(key=str(number), sadness=7, unknown=3) for number in range(20)}
    assert any("hard to read" in sentence for sentence in words)
    assert any("perhaps" in sentence for sentence in words)


def test_a_summary_is_one_sentence_with_emotion_and_cues() -> None:
    emotion = emotion_state(votes(happiness=10))
    for number in range(20):
        sentence = summary(emotion, SMILE, Wording(str(number)))
        assert "happiness" in sentence
        assert re.search(r"(raised|upturned) lip corners and (slightly|subtly) (raised|lifted) cheeks", sentence)
        assert sentence.count(".") == 1


@pytest.mark.parametrize("first", EMOTIONS)
@pytest.mark.parametrize("second", EMOTIONS)
@pytest.mark.parametrize("share", [10, 7, 5])
def test_every_mixture_has_words(first: str, second: str, share: int) -> None:
    given = {second: 10 - share, first: share} if first != second else {first: 10}
    for expressive in (True, False):
        emotion = emotion_state(votes(**given), expressive=expressive)
        for key in "abcdefghijkl":
            for sentence in (global_sentence(emotion, Wording(key)), summary(emotion, SMILE[:1], Wording(key))):
                assert re.fullmatch(r"[A-Z][^{}]*[a-z]\.", sentence), sentence
                assert not re.search(r"  | ,|,,|\b(\w+) \1\b|\ba [aeiou]", sentence), sentence


def test_votes_with_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="map them by name"):
        majority({"happy": 10})
