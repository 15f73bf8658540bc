import itertools
import re

import pytest

from emocap_pretrain.captions.grammar.action_units import (
    ACTION_UNITS,
    ADJECTIVES,
    ADVERBS,
    BANDS,
    LEVELS,
    Band,
    Degree,
)
from emocap_pretrain.captions.grammar.emotions import BLENDS, EMOTIONS, FEELS, HINTS, SHADES, EmotionState
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Look, Region, RegionState
from emocap_pretrain.captions.grammar.sentences import (
    NO_MOVEMENT,
    Wording,
    global_sentence,
    listed,
    local_sentence,
    summary,
    summary_without_emotion,
)

ALL_LOOKS = {name: look for name, look in LOOKS.items() if look.units}
KEYS = [Wording(str(number)) for number in range(12)]
SMILE = RegionState(Region.LIP_CORNERS, LOOKS["lip_corners_raised"], (Band.SLIGHT,))
OPEN_MOUTH = RegionState(Region.LIPS, LOOKS["lips_parted"], (Band.STRONG,))


def state(look: Look, *bands: Band) -> RegionState:
    return RegionState(Region.LIPS, look, bands * len(look.units) if len(bands) == 1 else bands)


def assert_well_formed(sentence: str) -> None:
    assert re.fullmatch(r"[A-Z][^{}]*[a-z)]\.", sentence), sentence
    assert not re.search(r"  | [,.;:]|,,|\b(\w+) \1\b|\ba [aeiou]|\ban [^aeiou]|[.;:].*\.$.", sentence), sentence
    assert not re.search(
        r"(?<!of )\bthe (\w+ )?(lips|eyes|eyebrows|eyelids|corners|cheeks|folds|ends) is\b", sentence
    ), sentence
    assert not re.search(r"(?<!of )(?<!and )\bthe (\w+ )?(nose|chin|jaw|mouth|lip|brow) are\b", sentence), sentence


@pytest.mark.parametrize("table", [ADJECTIVES, LEVELS, ADVERBS])
def test_no_word_for_intensity_is_used_by_two_bands(table):
    words = [word for band in table.values() for word in band]
    assert len(words) == len(set(words))


def test_a_word_means_the_same_band_before_a_movement_and_before_intensity():
    for one, other in itertools.permutations(BANDS, 2):
        assert not set(ADJECTIVES[one]) & set(LEVELS[other])


def test_no_movement_is_named_by_two_units():
    assert len({unit.movement for unit in ACTION_UNITS.values()}) == len(ACTION_UNITS)
    assert {unit for look in ALL_LOOKS.values() for unit in look.units} == set(ACTION_UNITS)


@pytest.mark.parametrize(
    ("name", "band"), [(name, band) for name, look in ALL_LOOKS.items() for band in BANDS if look.covers(band)]
)
def test_every_look_has_well_formed_sentences_that_name_its_units_and_their_band(name: str, band: Band):
    look = ALL_LOOKS[name]
    for wording in KEYS:
        sentence = local_sentence([state(look, band)], wording)
        assert_well_formed(sentence)
        for unit in look.units:
            assert re.search(rf"\bAU{unit}\b|\b{ACTION_UNITS[unit].movement}\b", sentence), sentence
        words = (*ADJECTIVES[band], *LEVELS[band])
        assert sum(sentence.count(f"{word} ") for word in words) >= len(look.units), sentence


@pytest.mark.parametrize("region", AT_REST)
def test_a_region_at_rest_has_no_movement_and_no_cue(region: Region):
    still = RegionState(region, AT_REST[region])
    for wording in KEYS:
        sentence = local_sentence([still], wording)
        assert_well_formed(sentence)
        assert any(sentence.endswith(f", {words}.") for words in NO_MOVEMENT)
    assert summary_without_emotion([still], KEYS[0]) == "A face."


def test_states_of_one_sentence_share_a_subject():
    states = [state(LOOKS["lips_stretched"], Band.SLIGHT), state(LOOKS["lips_tightened"], Band.STRONG)]
    for wording in KEYS:
        sentence = local_sentence(states, wording)
        assert_well_formed(sentence)
        assert sentence.lower().count("the lips are") == 1


def test_states_with_different_subjects_are_joined():
    sentences = {
        local_sentence([state(LOOKS["upper_lip_raised"], Band.SLIGHT), OPEN_MOUTH], wording) for wording in KEYS
    }
    assert all(" while the " in sentence for sentence in sentences)


def test_strong_cues_come_first():
    for wording in KEYS:
        assert re.fullmatch(
            r"A face with (a wide-open mouth|widely parted lips) and (slightly|subtly) \w+ lip corners\.",
            summary_without_emotion([SMILE, OPEN_MOUTH], wording),
        )


def test_parts_are_listed_with_commas_and_a_final_and():
    assert [listed(parts) for parts in ((), ("a",), ("a", "b"), ("a", "b", "c"))] == ["", "a", "a and b", "a, b and c"]


def every_emotion():
    for name, degree in itertools.product(EMOTIONS, Degree):
        yield EmotionState(name=name, degree=degree)
        yield EmotionState(name=name, degree=degree, ambiguous=True)
        for second, even in itertools.product(EMOTIONS, (True, False)):
            if second != name:
                yield EmotionState(name=name, degree=degree, second=second, even=even)
    for shade, degree, affect in itertools.product(SHADES, Degree, [(-1.0, -0.2), (0.0, 0.0), (1.0, 0.3)]):
        name = "neutral" if shade in {"composure", "attention", "ease", "rest"} else "surprise"
        yield EmotionState(name=name, degree=degree, shade=shade, affect=affect)


def test_every_emotion_has_well_formed_sentences():
    for emotion in every_emotion():
        for wording in KEYS[:6]:
            assert_well_formed(global_sentence(emotion, wording))
            for states in ([], [SMILE], [SMILE, OPEN_MOUTH], [RegionState(r, look) for r, look in AT_REST.items()]):
                assert_well_formed(summary(emotion, states, wording))


def test_every_emotion_but_neutral_has_words():
    assert set(FEELS) == set(HINTS) == set(EMOTIONS) - {"neutral"}
    assert all(pair <= set(EMOTIONS) for pair in BLENDS)


def test_a_neutral_summary_names_the_regions_at_rest():
    resting = [RegionState(region, AT_REST[region]) for region in (Region.EYEBROWS, Region.EYES)]
    for wording in KEYS:
        assert "the eyebrows and eyes at rest" in summary(EmotionState(name="neutral"), resting, wording)


def test_a_choice_of_words_depends_on_key_and_purpose_alone():
    assert Wording("a").number("x", "y") == Wording("a").number("x", "y") == 5635318994651599967
    options = range(1000)
    picks = {Wording(key).pick(options, purpose) for key in "ab" for purpose in "xy"}
    assert len(picks) == 4
