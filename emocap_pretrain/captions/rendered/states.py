"""Describes how each region of the face looks under its action units.

Every phrase claims only what the action units in `needs` do: `{how}` is the degree of the first, `{also}` that of the
second.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from emocap_pretrain.captions.rendered.face import BANDS
from emocap_pretrain.captions.rendered.phrases import Words


@dataclass(frozen=True, slots=True)
class State:
    """Phrases that are true if all units in `needs` act, the first of them in one of `bands`."""

    needs: tuple[int, ...]
    phrases: Words
    bands: Words = BANDS


@dataclass(frozen=True, slots=True)
class RegionStates:
    """A region: its states, the most specific first, and phrases for when none of `movers` acts.

    `movers` are all action units that are visible in this region, also those that no state names.
    """

    states: tuple[State, ...]
    movers: tuple[int, ...]
    rest: Words


EYEBROWS = RegionStates(
    (
        State(
            (1, 2, 4),
            (
                "The eyebrows are {how} raised yet drawn together",
                "Both brows are lifted {how} while they pinch together above the nose",
                "The brows rise {how} and at the same time pull towards each other",
            ),
        ),
        State(
            (1, 2),
            (
                "The eyebrows are {how} raised along their whole length",
                "Both brows are {how} arched upwards",
                "The eyebrows are lifted {how} over the eyes, inner and outer ends together",
            ),
        ),
        State(
            (1, 4),
            (
                "The inner ends of the eyebrows are {how} raised and {also} drawn together",
                "The brows slant {how} upwards towards the middle and are {also} pinched",
                "The inner corners of the brows lift {how} under a {also} contracted forehead",
            ),
        ),
        State(
            (4,),
            (
                "The eyebrows are {how} lowered and drawn together",
                "The brows are {how} knitted, with a furrow between them",
                "The brows are {how} pressed down towards the eyes",
            ),
        ),
        State((1,), ("The inner ends of the eyebrows are {how} raised", "The inner corners of the brows lift {how}")),
        State((2,), ("The outer ends of the eyebrows are {how} raised", "The tails of the brows lift {how}")),
    ),
    (1, 2, 4),
    ("The eyebrows are at rest", "The brows lie level and relaxed", "Both eyebrows keep their natural position"),
)

EYES = RegionStates(
    (
        State((43,), ("The eyes are closed", "Both eyes are shut", "The eyelids are lowered over the eyes"), BANDS[4:]),
        State((43,), ("The eyes are almost closed", "The eyes are open by no more than a slit"), BANDS[3:4]),
        State((43,), ("The eyes are half closed", "The upper lids hang heavily over the eyes"), BANDS[2:3]),
        State((43,), ("The upper lids droop {how}", "The upper eyelids sink {how} over the eyes"), BANDS[:2]),
        State(
            (5, 7),
            (
                "The eyes stare, with upper lids {how} raised and lower lids {also} tensed",
                "The upper lids are {how} lifted over {also} tightened lower lids",
            ),
        ),
        State(
            (5,),
            (
                "The eyes are {how} widened",
                "The upper eyelids are {how} raised, opening the eyes",
                "The eyes open {how} to show more of the white",
            ),
        ),
        State(
            (6, 7),
            (
                "The lower lids are pushed up {how} by the cheeks and {also} tightened",
                "The eyes are {how} narrowed from below, with {also} tensed lids",
            ),
        ),
        State(
            (7,),
            (
                "The eyelids are {how} tightened",
                "The eyes are {how} narrowed into a tense look",
                "The lower lids are {how} tensed and drawn up",
            ),
        ),
        State(
            (6,),
            (
                "The eyes are {how} narrowed by the lifted cheeks",
                "The lower lids are pushed up {how} from below",
                "The eyes crinkle {how} at their outer corners",
            ),
        ),
    ),
    (5, 6, 7, 9, 43),
    ("The eyes are open and relaxed", "Both eyes are open in a natural way", "The eyelids are at rest over open eyes"),
)

CHEEKS = RegionStates(
    (
        State(
            (6,),
            (
                "The cheeks are {how} raised and rounded",
                "The cheeks are {how} lifted towards the eyes",
                "The apples of the cheeks are pushed up {how}",
            ),
        ),
        State(
            (14,), ("The cheeks are {how} dimpled beside the mouth", "The cheeks are {how} drawn in at the lip corners")
        ),
    ),
    (6, 9, 10, 12, 14, 20),
    ("The cheeks are at rest", "The cheeks hang loose and relaxed", "Both cheeks keep their resting shape"),
)

NOSE = RegionStates(
    (
        State(
            (9, 10),
            (
                "The nose is {how} wrinkled above a {also} lifted upper lip",
                "The bridge of the nose is {how} creased and the nasolabial folds are {also} deepened",
            ),
        ),
        State(
            (9,),
            (
                "The nose is {how} wrinkled along its bridge",
                "The skin beside the nose is {how} creased",
                "The nose is {how} crinkled and its wings are lifted",
            ),
        ),
        State(
            (10,),
            (
                "The nasolabial folds are {how} deepened by the rising upper lip",
                "The folds beside the nose are {how} squared",
            ),
        ),
        State(
            (12,),
            (
                "The nasolabial folds are {how} deepened and bowed outwards",
                "The folds from nose to mouth curve {how} around the lifted lip corners",
            ),
        ),
    ),
    (9, 10, 12, 15),
    ("The nose and the nasolabial folds are at rest", "The nose is relaxed", "The folds beside the nose are unchanged"),
)

CHIN = RegionStates(
    (
        State(
            (17,),
            (
                "The chin is {how} pushed up and dimpled",
                "The chin boss bulges {how} upwards",
                "The skin of the chin is {how} bunched",
            ),
        ),
    ),
    (17, 25, 26),
    ("The chin is at rest", "The chin and the jaw are relaxed", "The jaw is closed and the chin unmoved"),
)

REGIONS: Mapping[str, RegionStates] = {"eyebrows": EYEBROWS, "eyes": EYES, "cheeks": CHEEKS, "nose": NOSE, "chin": CHIN}
"""All regions but the mouth, whose sentence is composed of `LEADS` and `OPENINGS`."""

LEADS: Mapping[int, Words] = {
    10: ("the upper lip is {how} raised", "the upper lip lifts {how} towards the nose"),
    12: (
        "the lip corners are {how} pulled up and back",
        "the corners of the mouth rise {how} into a smile",
        "the mouth curves {how} upwards at its corners",
    ),
    14: ("the mouth corners are {how} tucked in", "the lip corners tighten {how} into dimples"),
    15: (
        "the lip corners are {how} pulled down",
        "the corners of the mouth sag {how}",
        "the mouth turns down {how} at its corners",
    ),
    17: ("the lower lip is {how} pushed up", "the lower lip rises {how} against the upper one"),
    20: ("the lips are {how} stretched sideways", "the mouth is {how} drawn out to the sides"),
    23: ("the lips are {how} tightened and thinned", "the lips are {how} narrowed and rolled inwards"),
}
"""The effect of one action on the lips, as a clause."""

OPENINGS: Mapping[int, Words] = {
    25: ("the lips are {how} parted", "the lips come {how} apart"),
    26: ("the mouth is open over a {how} dropped jaw", "the mouth hangs open with the jaw {how} lowered"),
}
"""The action that opens the mouth, as a clause."""

SHUT: Words = ("the lips stay closed", "the mouth stays shut")

MOUTH_RESTS: Words = ("The mouth is closed and relaxed", "The lips lie together at rest", "The mouth is shut and still")

NOTHING: Words = ("with no visible action", "without any visible action", "and no action unit is visible")
