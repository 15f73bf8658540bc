from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.captions.grammar.action_units import ADVERBS, BANDS, Degree
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Look, Region, RegionState
from emocap_pretrain.captions.grammar.sentences import Wording, local_sentence, summary_without_emotion
from emocap_pretrain.checking.claims import Claim, find_claims
from emocap_pretrain.checking.movements import MOVEMENTS


def shown(claim: Claim) -> str:
    """Returns a claim in short, such as "left high brows_raised", with "NOT" if it is negated."""
    parts = (claim.side, claim.degree and claim.degree.value, "NOT" if claim.negated else "", claim.movement)
    return " ".join(part for part in parts if part)


# Sentences in other words than those of the grammar, and what they claim.
FREE = {
    "A raised left eyebrow gives her a sceptical look.": ["left brows_raised"],
    "She is furrowing her brow.": ["brows_drawn_together"],
    "He pulls the corners of his mouth up.": ["lip_corners_raised"],
    "He pulls the corners up.": ["lip_corners_raised"],
    "The right eyebrow is slightly higher than the left one.": ["right low brows_raised"],
    "Both eyebrows are strongly raised and pulled together.": ["both high brows_raised", "both brows_drawn_together"],
    "Eyes wide, mouth agape, brows up.": ["eyes_widened", "lips_parted", "brows_raised"],
    "A broad smile lifts the cheeks and narrows the eyes.": [
        "high lip_corners_raised",
        "cheeks_raised",
        "eyes_narrowed",
    ],
    "The eyebrows, slightly arched, frame wide-open eyes.": ["low brows_raised", "high eyes_widened"],
    "Her left eye is closed while the right eye stays open.": ["left eyes_closed", "right eyes_open"],
    "The lips are drawn back, showing the teeth.": ["lips_stretched", "lips_parted"],
    "A slight furrow appears between the brows.": ["low brows_drawn_together"],
    "The nose is slightly scrunched, and the upper lip is raised, exposing the upper teeth.": [
        "low nose_wrinkled",
        "upper_lip_raised",
        "lips_parted",
    ],
    "The left corner of the mouth is pulled upward, whereas the right corner stays neutral.": [
        "left lip_corners_raised",
        "right mouth_at_rest",
    ],
    "On the viewer's left, the eyebrow is raised.": ["right brows_raised"],
    "The upper lip curls on the right side.": ["right upper_lip_raised"],
    "He raises one eyebrow.": ["one brows_raised"],
    "The eyebrows and eyelids are raised.": ["brows_raised", "eyes_widened"],
    "The mouth is slightly downturned at the corners.": ["low lip_corners_lowered"],
    "The eyes are barely open.": ["low eyes_closed"],
    "The forehead is smooth and the eyebrows are relaxed.": ["eyebrows_at_rest"],
    "Her pursed lips suggest doubt.": ["lips_pursed"],
    "Mouth: closed, corners turned down.": ["mouth_closed", "lip_corners_lowered"],
    # Negation, its scope, and what only looks like it.
    "The mouth isn't open and the eyes are wide.": ["NOT lips_parted", "eyes_widened"],
    "There is no smile, no frown and no tension in the lips.": [
        "NOT lip_corners_raised",
        "NOT frown",
        "mouth_at_rest",
    ],
    "The lips are neither pressed nor parted.": ["NOT lips_pressed", "NOT lips_parted"],
    "The face is free of any smile.": ["NOT lip_corners_raised"],
    "The eyes are relaxed rather than widened.": ["eyes_at_rest", "NOT eyes_widened"],
    "The smile is absent.": ["NOT lip_corners_raised"],
    "The eyebrows are lowered, not raised.": ["brows_lowered", "NOT brows_raised"],
    "The eyebrows are not only raised but also drawn together.": ["brows_raised", "brows_drawn_together"],
    "The eyes are not fully closed.": ["low eyes_closed"],
    # Codes of action units.
    "AU4 and AU12L are active.": ["brow_lowerer", "left lip_corners_raised"],
    "AUs 1, 2 and 5D are visible, but AU 4 is not.": [
        "inner_brows_raised",
        "outer_brows_raised",
        "high eyes_widened",
        "NOT brow_lowerer",
    ],
    "Action unit 12 at strong intensity": ["high lip_corners_raised"],
    "AU6+12": ["cheeks_raised", "lip_corners_raised"],
    # What is not said of the face.
    "Her eyebrows are raised as if she were about to smile.": ["brows_raised"],
    "The person might be smiling.": [],
    "She seems to be suppressing a smile.": [],
    "The sight raises a question.": [],
    "He looks up, raising his voice.": [],
    "The head is lowered and the eyes are cast down.": [],
    "She raises her hand near her face.": [],
    "The light from the left raises contrast on her cheeks.": [],
    "Her open expression invites trust.": [],
    "She closes the door.": [],
    "A man with a beard wearing glasses.": [],
    "": [],
}


@pytest.mark.parametrize(("sentence", "claims"), FREE.items())
def test_free_english_makes_these_claims(sentence: str, claims: list[str]) -> None:
    assert [shown(claim) for claim in find_claims(sentence)] == claims


def states() -> list[RegionState]:
    """Returns each look of the grammar in each band that it covers, and each region at rest."""
    active = [
        RegionState(Region.LIPS, look, (band,) * len(look.units))
        for look in LOOKS.values()
        for band in BANDS
        if look.units and look.covers(band)
    ]
    return [*active, *(RegionState(region, look) for region, look in AT_REST.items())]


def assert_claims(sentence: str, look: Look) -> None:
    """Checks that the claims of a sentence name all action units of a look, and no movement without one of them."""
    claims = find_claims(sentence)
    positive = [claim.units for claim in claims if claim.units and not claim.negated]
    assert claims, sentence
    assert all(set(units) & set(look.units) for units in positive), (sentence, claims)
    assert set(look.units) <= set(chain.from_iterable(positive)), (sentence, claims)


def test_every_phrase_of_the_grammar_claims_the_units_of_its_look() -> None:
    for look in (*LOOKS.values(), *AT_REST.values()):
        for phrases in (look.clauses, look.cues):
            for phrase in chain.from_iterable(phrases.values()):
                for how, also in zip(ADVERBS[Degree.LOW], ADVERBS[Degree.HIGH], strict=False):
                    assert_claims(phrase.format(how=how, also=also), look)


@given(st.sampled_from(states()), st.text(max_size=8))
def test_a_whole_sentence_of_the_grammar_claims_the_units_of_its_look(state: RegionState, key: str) -> None:
    assert_claims(local_sentence([state], Wording(key)), state.look)
    if state.cues():
        assert_claims(summary_without_emotion([state], Wording(key)), state.look)


@given(st.text(max_size=300))
def test_any_text_gives_claims_about_known_movements(text: str) -> None:
    assert all(claim.movement in MOVEMENTS for claim in find_claims(text))
