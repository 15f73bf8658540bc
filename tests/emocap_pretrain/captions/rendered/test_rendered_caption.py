import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.captions.grammar.action_units import (
    ACTION_UNITS,
    ADJECTIVES,
    ADVERBS,
    DEGREE_OF,
    LEVELS,
    VISIBLE,
    band,
)
from emocap_pretrain.captions.grammar.emotions import SHADES
from emocap_pretrain.captions.grammar.looks import AT_REST
from emocap_pretrain.captions.grammar.sentences import NO_MOVEMENT
from emocap_pretrain.captions.rendered.captioner import MOVERS, SUMMARY_LOOKS, caption
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.captions.rendered.face import DRAWN, actions

FACES = [sample_face(0, index) for index in range(700)]
CAPTIONS = [caption(sampled) for sampled in FACES]
BAND_OF = {word: name for table in (ADJECTIVES, LEVELS) for name, words in table.items() for word in words}
UNIT_OF = {described.movement: unit for unit, described in ACTION_UNITS.items()}
DEGREE_OF_ADVERB = {word: name for name, words in ADVERBS.items() for word in words}
STRENGTHS = st.dictionaries(st.sampled_from(DRAWN), st.floats(VISIBLE, 1.0), max_size=8)


def _any(words):
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


CODED = re.compile(rf"AU(\d+)\)? at ({_any(BAND_OF)}) intensity")
DESCRIBED = re.compile(rf"\b({_any(BAND_OF)}) ({_any(UNIT_OF)})\b")
ADVERB = re.compile(rf"\b({_any(DEGREE_OF_ADVERB)})\b")

# What a picture must show for words to be true: a pattern of the words to a test of the action units.
SHOWN = {
    r"eyes are (closed|shut)|eyelids are closed": lambda a: a[43] >= 0.8,
    r"almost closed|nearly shut": lambda a: 0.6 <= a[43] < 0.8,
    r"half closed|about half": lambda a: 0.4 <= a[43] < 0.6,
    r"upper eyelids (are \w+ lowered|droop|sink)": lambda a: 0.1 <= a[43] < 0.4,
    r"widened|eyelids are \w+ raised": lambda a: 5 in a,
    r"wide open|very wide": lambda a: a[5] >= 0.6 or a[25] >= 0.6,
    r"smile|corners of the mouth are \w+ (raised|pulled up|turned up)|mouth curve": lambda a: 12 in a,
    r"corners of the mouth are \w+ (pulled down|turned down|lowered)|mouth droop": lambda a: 15 in a,
    r"parted|separated|apart": lambda a: 25 in a,
    r"jaw is \w+ (lowered|dropped)|lowered jaw|hangs open": lambda a: 26 in a,
    r"mouth (is|stays) closed|lips are closed": lambda a: not a.any(25, 26),
    r"mouth is open": lambda a: a.any(25, 26),
    r"(eyebrows|ends of the eyebrows) are (?!neither)\w+ (raised|lifted|arched)|tails of": lambda a: a.any(1, 2),
    r"eyebrows slant": lambda a: 1 in a,
    r"furrowed|pinched|drawn (together|towards)|eyebrows are \w+ (lowered|drawn down)": lambda a: 4 in a,
    r"eyelids are \w+ (tightened|tensed)|pushed up by the cheeks|squint": lambda a: a.any(6, 7),
    r"nose is (?!not)\w+ (wrinkled|scrunched)|sides of the nose|bridge of the nose": lambda a: 9 in a,
    r"upper lip (is|rises)|raised upper lip": lambda a: 10 in a,
    r"folds are \w+ deepened": lambda a: a.any(10, 12),
    r"lips are \w+ (stretched|drawn out)": lambda a: 20 in a,
    r"lips are \w+ (tightened|narrowed|thinned)": lambda a: 23 in a,
    r"dimpled|tucked in|corners of the mouth are \w+ tightened": lambda a: 14 in a,
    r"chin is \w+ (pushed|wrinkled|bunched)|lower lip is": lambda a: 17 in a,
    r"cheeks are \w+ (raised|lifted|pushed)|crinkled": lambda a: 6 in a,
}


def _claims(sentence: str):
    """Returns every (action unit, band) that a sentence names."""
    found = {(int(unit), BAND_OF[level]) for unit, level in CODED.findall(sentence)}
    return found | {(UNIT_OF[movement], BAND_OF[adjective]) for adjective, movement in DESCRIBED.findall(sentence)}


def _check(sentence: str, acting):
    claims = _claims(sentence)
    rests = any(nothing in sentence for nothing in NO_MOVEMENT)
    assert bool(claims) != rests, sentence
    for unit, name in claims:
        assert unit in acting, sentence
        assert band(acting[unit]) == name, sentence
    degrees = {DEGREE_OF_ADVERB[word] for word in ADVERB.findall(sentence)}
    assert degrees <= {DEGREE_OF[name] for _, name in claims}, sentence
    for words, holds in SHOWN.items():
        assert not re.search(words, sentence) or holds(acting), (words, sentence)


def test_the_patterns_of_this_test_occur_in_captions():
    text = "\n".join(sentence for made in CAPTIONS for sentence in made.local)
    assert not [words for words in SHOWN if not re.search(words, text)]
    assert {unit for unit, _ in _claims(text)} == set(DRAWN)


def test_every_local_sentence_is_true():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        for sentence in made.local:
            _check(sentence, sampled.actions)


@given(STRENGTHS, st.integers(0, 2**31))
def test_local_sentences_are_true_for_any_combination_of_actions(strength, wording):
    sampled = replace(FACES[0], actions=actions(strength), wording=wording)
    for sentence in caption(sampled).local:
        _check(sentence, sampled.actions)


def test_a_region_is_described_as_at_rest_only_when_nothing_moves_it():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        for sentence in made.local:
            for region, movers in MOVERS.items():
                (clauses,) = AT_REST[region].clauses.values()
                if any(sentence.lower().startswith(f"{clause}, ") for clause in clauses):
                    assert not sampled.actions.any(*movers), sentence


def _cues(summary):
    """Returns the action units, the bands and the adverb (or "") of every cue that a summary names."""
    for _, look in SUMMARY_LOOKS:
        for bands, cues in look.cues.items():
            for cue in cues:
                pattern = re.escape(cue).replace(r"\{how\}", f"({_any(DEGREE_OF_ADVERB)})").replace(r"\{also\}", r"\w+")
                for match in re.finditer(rf"(?<!half-)(?<!almost )\b{pattern}(?=[,;.]| and)", summary):
                    yield look.units, bands, (*match.groups(), "")[0]


def test_every_cue_of_the_summary_is_true():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        cues = list(_cues(made.summary))
        assert cues or not sampled.actions.strength
        for units, bands, adverb in cues:
            assert all(unit in sampled.actions for unit in units), made.summary
            assert band(sampled.actions[units[0]]) in bands, made.summary
            if adverb:
                assert DEGREE_OF_ADVERB[adverb] == DEGREE_OF[band(sampled.actions[units[0]])], made.summary


def test_local_sentences_follow_the_actions_and_not_the_label():
    for sampled, made in zip(FACES[:70], CAPTIONS, strict=False):
        assert caption(replace(sampled, emotion="anger", shade="rage")).local == made.local


def test_the_global_sentence_names_an_emotion_and_no_cue():
    cue = re.compile(r"\b(AU|brow|eye|lid|lip|mouth|cheek|nose|chin|jaw|fold|smil)", re.IGNORECASE)
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        assert not cue.search(made.global_), made.global_
        assert any(word in made.global_ for word in (*SHADES[sampled.shade], sampled.emotion))
        assert made.global_.count(".") == 1


def test_the_summary_is_one_long_sentence_about_the_same_emotion():
    for sampled, made in zip(FACES, CAPTIONS, strict=True):
        assert any(word in made.summary for word in (*SHADES[sampled.shade], sampled.emotion))
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


def test_the_same_face_can_be_described_in_many_ways():
    assert len({caption(replace(FACES[3], wording=wording)) for wording in range(50)}) == 50


@pytest.mark.parametrize("index", range(7))
def test_a_caption_has_no_randomness_of_its_own(index: int):
    assert caption(FACES[index]) == caption(sample_face(0, index))
