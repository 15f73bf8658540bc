"""Writes the caption of a rendered face.

The local sentences depend on the action units only, not on the name of the emotion.

The captions are true by construction, because picture and caption come from the same action units. What a caption says
is chosen in three steps. `describe` finds the looks (the ways in which a region can look) that fit the action units.
`_chosen` selects those that get a local sentence, and `_summarized` those that the summary names. `captions/grammar`
chooses the words.
"""

from collections.abc import Mapping

from emocap_shards.sample import Caption

from emocap_pretrain.captions.grammar.action_units import Degree, band
from emocap_pretrain.captions.grammar.emotions import EmotionState
from emocap_pretrain.captions.grammar.looks import AT_REST, LOOKS, Look, Region, RegionState
from emocap_pretrain.captions.grammar.sentences import Wording, global_sentence, local_sentence, summary
from emocap_pretrain.captions.rendered.face import Actions, Face

REGION_LOOKS: Mapping[Region, tuple[Look, ...]] = {
    Region.EYEBROWS: (
        LOOKS["brows_raised_together"],
        LOOKS["brows_raised"],
        LOOKS["inner_brows_raised_together"],
        LOOKS["brows_drawn_together"],
        LOOKS["inner_brows_raised"],
        LOOKS["outer_brows_raised"],
    ),
    Region.EYES: (
        LOOKS["eyes_closed"],
        LOOKS["lids_lowered"],
        LOOKS["lids_raised_and_tensed"],
        LOOKS["eyes_widened"],
        LOOKS["eyes_narrowed_tightly"],
        LOOKS["lids_tightened"],
        LOOKS["eyes_narrowed_by_cheeks"],
    ),
    Region.CHEEKS: (LOOKS["cheeks_raised"], LOOKS["cheeks_dimpled"]),
    Region.NOSE: (
        LOOKS["nose_wrinkled_and_lip_raised"],
        LOOKS["nose_wrinkled"],
        LOOKS["folds_deepened_by_lip"],
        LOOKS["folds_deepened_by_smile"],
    ),
    Region.CHIN: (LOOKS["chin_raised"],),
}
"""The looks of each region except the mouth, with the most specific look first.

The mouth is missing because its sentence combines several looks.
"""

MOVERS: Mapping[Region, tuple[int, ...]] = {
    Region.EYEBROWS: (1, 2, 4),
    Region.EYES: (5, 6, 7, 9, 43),
    Region.CHEEKS: (6, 9, 10, 12, 14, 20),
    Region.NOSE: (9, 10, 12, 15),
    Region.CHIN: (17, 25, 26),
}
"""All action units that are visible in each region, also without a look of their own.

A region is at rest if none of its action units is active.
"""

_LIPS: tuple[Look, ...] = (
    LOOKS["upper_lip_raised"],
    LOOKS["lip_corners_raised"],
    LOOKS["lip_corners_tucked_in"],
    LOOKS["lip_corners_lowered"],
    LOOKS["lower_lip_pushed_up"],
    LOOKS["lips_stretched"],
    LOOKS["lips_tightened"],
)
_OPENINGS: tuple[Look, ...] = (LOOKS["jaw_dropped"], LOOKS["lips_parted"])

SUMMARY_LOOKS: tuple[tuple[Region, Look], ...] = (
    *((Region.EYEBROWS, look) for look in REGION_LOOKS[Region.EYEBROWS]),
    (Region.EYES, LOOKS["eyes_widened"]),
    (Region.EYES, LOOKS["lids_tightened"]),
    (Region.EYES, LOOKS["eyes_closed"]),
    (Region.EYES, LOOKS["lids_lowered"]),
    (Region.CHEEKS, LOOKS["cheeks_raised"]),
    (Region.NOSE, LOOKS["nose_wrinkled"]),
    *((Region.LIPS, look) for look in _LIPS if look is not LOOKS["lower_lip_pushed_up"]),
    (Region.CHIN, LOOKS["chin_raised"]),
    *((Region.LIPS, look) for look in _OPENINGS),
)
"""The looks that a summary can name. An action unit counts only for the first look in this order that fits."""

_SUMMARY_CUES = 5  # The most cues that a summary names.


def caption(face: Face) -> Caption:
    """Returns the caption of `face`; the same face always gets the same words."""
    wording = Wording(str(face.wording))
    affect = face.valence, face.arousal
    emotion = EmotionState(name=face.emotion, degree=degree(face.intensity), shade=face.shade, affect=affect)
    return Caption(
        global_=global_sentence(emotion, wording),
        local=tuple(local_sentence(states, wording) for states in _chosen(face.actions, wording)),
        summary=summary(emotion, _summarized(face.actions), wording),
    )


def degree(intensity: float) -> Degree:
    """Returns the degree (low, mid or high) that an emotion of this `intensity` has. `intensity` lies in [0, 1]."""
    return Degree.LOW if intensity < 0.5 else Degree.MID if intensity < 0.75 else Degree.HIGH


def describe(acting: Actions, wording: Wording) -> list[tuple[RegionState, ...]]:
    """Returns one tuple for each local sentence that is possible: the states that this sentence describes.

    A state names the look of a region of the face, such as raised eyebrows. The first tuple belongs to the sentence
    about the mouth and can hold several states. Every other tuple belongs to another region and holds one state. A
    region gets no sentence if an action unit changes it, but no look in `REGION_LOOKS` fits the active action units.
    `wording` chooses among the states of the mouth.
    """
    regions = [_state(region, acting) for region in REGION_LOOKS]
    return [_mouth(acting, wording), *((state,) for state in regions if state is not None)]


def _state(region: Region, acting: Actions) -> RegionState | None:
    for look in REGION_LOOKS[region]:
        if _fits(look, acting):
            return _state_of(region, look, acting)
    return None if acting.any(*MOVERS[region]) else RegionState(region, AT_REST[region])


def _fits(look: Look, acting: Actions) -> bool:
    return all(unit in acting for unit in look.units) and look.covers(band(acting[look.units[0]]))


def _state_of(region: Region, look: Look, acting: Actions) -> RegionState:
    return RegionState(region, look, tuple(band(acting[unit]) for unit in look.units))


def _mouth(acting: Actions, wording: Wording) -> tuple[RegionState, ...]:
    """Returns the states of the lips that a sentence describes: at most two movements, and how far the mouth is open.

    If the lips move and the mouth is closed, three of five captions also say that the mouth is closed. If the lips do
    not move and the mouth is closed, the result is the state at rest.
    """
    moving = sorted((look for look in _LIPS if _fits(look, acting)), key=lambda look: -acting[look.units[0]])[:2]
    if wording.number("one movement") % 4 == 0:
        moving = moving[:1]
    opening = [look for look in _OPENINGS if _fits(look, acting)][:1]
    states = tuple(_state_of(Region.LIPS, look, acting) for look in (*moving, *opening))
    if not states:
        return (RegionState(Region.LIPS, AT_REST[Region.LIPS]),)
    if not opening and wording.number("closed") % 5 < 3:
        return (*states, RegionState(Region.LIPS, LOOKS["mouth_closed"]))
    return states


def _chosen(acting: Actions, wording: Wording) -> list[tuple[RegionState, ...]]:
    """Chooses three to six local sentences, and returns the states that each of them describes, in random order.

    Sentences about strong action units are preferred, and sentences about regions at rest are chosen last. If fewer
    sentences are possible, all of them are chosen.
    """

    def strongest(states: tuple[RegionState, ...]) -> float:
        return max((acting[unit] for state in states for unit in state.look.units), default=0.0)

    # The second sort is stable, so the first one decides between sentences of equal strength, such as regions at rest.
    sentences = describe(acting, wording)
    sentences.sort(key=lambda states: wording.number("tie", states[0].region))
    sentences.sort(key=strongest, reverse=True)
    chosen = sentences[: 3 + wording.number("count") % 4]
    return sorted(chosen, key=lambda states: wording.number("order", states[0].region))


def _summarized(acting: Actions) -> list[RegionState]:
    """Returns the states that a summary names: at most five, the strongest first.

    A state is a look of a region of the face, such as raised eyebrows, with its intensities. No two states of the
    result share an action unit. If no look of `SUMMARY_LOOKS` fits the action units, the result is instead the state at
    rest of each region except the corners of the lips.
    """
    left, found = set(acting), list[RegionState]()
    for region, look in SUMMARY_LOOKS:
        if left.issuperset(look.units) and _fits(look, acting):
            left.difference_update(look.units)
            found.append(_state_of(region, look, acting))
    if not found:
        return [RegionState(region, look) for region, look in AT_REST.items() if region is not Region.LIP_CORNERS]
    return sorted(found, key=lambda state: -acting[state.look.units[0]])[:_SUMMARY_CUES]
