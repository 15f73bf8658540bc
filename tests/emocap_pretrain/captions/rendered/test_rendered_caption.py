import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.captions.rendered.caption import caption
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.captions.rendered.face import NAMES, VISIBLE, actions, band
from emocap_pretrain.captions.rendered.phrases import (
    ADJECTIVES,
    ADVERBS,
    CUES,
    DEEDS,
    DEGREE,
    EMOTION_NOUNS,
    LEVELS,
    SHADES,
)
from emocap_pretrain.captions.rendered.states import NOTHING, REGIONS

FACES = [sample_face(0, index) for index in range(700)]
CAPTIONS = [caption(sampled) for sampled in FACES]
BAND_OF = {word: name for table in (ADJECTIVES, LEVELS) for name, words in table.items() for word in words}
UNIT_OF = {deed: unit for unit, deeds in DEEDS.items() for deed in deeds}
DEGREE_OF = {word: name for name, words in ADVERBS.items() for word in words}
STRENGTHS = st.dictionaries(st.sampled_from(sorted(NAMES)), st.floats(VISIBLE, 1.0), max_size=8)


def _any(words):
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


CODED = re.compile(rf"AU(\d+)\)? at ({_any(BAND_OF)}) intensity")
DESCRIBED = re.compile(rf"\b({_any(BAND_OF)}) ({_any(UNIT_OF)})\b")
ADVERB = re.compile(rf"\b({_any(DEGREE_OF)})\b")

# What a picture must show for a word to be true: word to a test of the action units.
SHOWN = {
    r"eyes are (closed|shut)": lambda a: a[43] >= 0.8,
    r"half closed": lambda a: 0.4 <= a[43] < 0.6,
    r"widened|to show more of the white": lambda a: 5 in a,
    r"smile|curves \w+ upwards|pulled up and back": lambda a: 12 in a,
    r"corners are \w+ pulled down|sag|turns down": lambda a: 15 in a,
    r"parted|come \w+ apart": lambda a: 25 in a,
    r"dropped jaw|hangs open": lambda a: 26 in a,
    r"stays? (closed|shut)|closed and relaxed": lambda a: not a.any(25, 26),
    r"brows? (are|rise|arch|lift|is) \w* ?(raised|lifted|upwards)|brows lift": lambda a: a.any(1, 2),
    r"knitted|furrow|pressed down|drawn together|pinch": lambda a: 4 in a,
    r"nose is \w+ (wrinkled|crinkled)|bridge of the nose is": lambda a: 9 in a,
    r"stretched sideways|drawn out": lambda a: 20 in a,
    r"tightened and thinned|rolled inwards": lambda a: 23 in a,
    r"dimples|dimpled beside|tucked in": lambda a: 14 in a,
    r"chin (is|boss|are) \w+ (pushed|bulges|bunched)": lambda a: 17 in a,
    r"apples of the cheeks|cheeks are \w+ (raised|lifted)": lambda a: 6 in a,
}


def _claims(sentence: str):
    """All (action unit, band) that a sentence names."""
    found = {(int(unit), BAND_OF[level]) for unit, level in CODED.findall(sentence)}
    return found | {(UNIT_OF[deed], BAND_OF[adjective]) for adjective, deed in DESCRIBED.findall(sentence)}


def _check(sentence: str, acting):
    claims = _claims(sentence)
    rests = any(nothing in sentence for nothing in NOTHING)
    assert bool(claims) != rests, sentence
    for unit, name in claims:
        assert unit in acting, sentence
        assert band(acting[unit]) == name, sentence
    assert {DEGREE_OF[word] for word in ADVERB.findall(sentence)} <= {DEGREE[name] for _, name in claims}, sentence
    for word, holds in SHOWN.items():
        assert not re.search(word, sentence) or holds(acting), (word, sentence)


def test_words_for_strength_and_deeds_belong_to_one_band_and_one_unit():
    for table in (ADJECTIVES, LEVELS, ADVERBS, DEEDS):
        words = [word for entry in table.values() for word in entry]
        assert len(words) == len(set(words))
    assert set(DEEDS) == set(NAMES)


def test_every_local_sentence_is_true():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        for sentence in made.local:
            _check(sentence, sampled.actions)


@given(STRENGTHS, st.integers(0, 2**31))
def test_local_sentences_are_true_for_any_combination_of_actions(strength, wording):
    sampled = replace(FACES[0], actions=actions(strength), wording=wording)
    for sentence in caption(sampled).local:
        _check(sentence, sampled.actions)


def test_a_region_is_called_still_only_when_nothing_moves_it():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        for sentence in made.local:
            for region in REGIONS.values():
                if any(sentence.startswith(rest) for rest in region.rest):
                    assert not sampled.actions.any(*region.movers), sentence


def _cues(summary):
    """Action units and adverb of every cue that a summary names."""
    patterns = ((units, re.escape(cue).replace(r"\{how\}", r"(\w+)")) for units, cues in CUES for cue in cues)
    return [(units, match[1]) for units, pattern in patterns if (match := re.search(rf"the {pattern}", summary))]


def test_every_cue_of_the_summary_is_true():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        cues = _cues(made.summary)
        assert cues or not sampled.actions.strength
        for units, adverb in cues:
            assert all(unit in sampled.actions for unit in units), made.summary
            assert DEGREE_OF[adverb] == DEGREE[band(sampled.actions[units[0]])], made.summary


def test_local_sentences_follow_the_actions_and_not_the_label():
    for sampled, made in zip(FACES[:70], CAPTIONS, strict=False):
        assert caption(replace(sampled, emotion="anger", shade="rage")).local == made.local


def test_the_global_sentence_names_an_emotion_and_no_cue():
    cue = re.compile(r"\b(AU|brow|eye|lid|lip|mouth|cheek|nose|chin|jaw|fold|smil)", re.IGNORECASE)
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        assert not cue.search(made.global_), made.global_
        assert any(word in made.global_ for word in (*SHADES[sampled.shade], *EMOTION_NOUNS[sampled.emotion]))
        assert made.global_.count(".") == 1


def test_the_summary_is_one_long_sentence_about_the_same_emotion():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        words = (*SHADES[sampled.shade], *EMOTION_NOUNS[sampled.emotion], "neutral")
        assert any(word in made.summary for word in words)
        assert made.summary.count(".") == 1
        assert 12 <= len(made.summary.split()) <= 80


def test_there_are_three_to_six_local_sentences_and_none_twice():
    counts = {len(made.local) for made in CAPTIONS}
    assert counts == {3, 4, 5, 6}
    assert all(len(set(made.local)) == len(made.local) for made in CAPTIONS)


def test_sentences_are_well_formed():
    for made in CAPTIONS:
        for sentence in (made.global_, *made.local, made.summary):
            assert re.fullmatch(r"[A-Z][^{}]*[a-z)]\.", sentence), sentence
            assert not re.search(r"  | ,|,,|\.\.|\b(\w+) \1\b|\ba [aeiou]", sentence), sentence


def test_wording_is_rich():
    local = [sentence for made in CAPTIONS for sentence in made.local]
    text = " ".join((*local, *(f"{made.global_} {made.summary}" for made in CAPTIONS)))
    assert len(set(local)) > 0.6 * len(local)
    assert len({made.global_ for made in CAPTIONS}) > 0.8 * len(CAPTIONS)
    assert 350 < len(set(re.findall(r"[a-z]+", text.lower()))) < 1500


def test_the_same_face_can_be_told_in_many_ways():
    assert len({caption(replace(FACES[3], wording=wording)) for wording in range(50)}) == 50


@pytest.mark.parametrize("index", range(7))
def test_a_caption_has_no_randomness_of_its_own(index: int):
    assert caption(FACES[index]) == caption(sample_face(0, index))
