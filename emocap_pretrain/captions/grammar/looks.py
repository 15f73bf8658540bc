"""Defines the looks of each region of the face: the action units that cause a look, and the phrases that describe it.

A phrase claims nothing beyond the action units of its look. `{how}` stands for an adverb of the intensity of the first
unit, `{also}` for an adverb of the intensity of the last unit. A clause is a main clause with its subject ("the
eyebrows are raised"). A cue is a noun phrase with its article ("raised eyebrows", "a wrinkled nose").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from emocap_pretrain.captions.grammar.action_units import BANDS, Band, Words

Phrases = Mapping[tuple[Band, ...], Words]
"""The phrases for each group of bands of the first action unit; the groups may overlap."""


class Region(StrEnum):
    """Names the regions of the face, by the words that follow "the" in a sentence."""

    EYEBROWS = "eyebrows"
    EYES = "eyes"
    CHEEKS = "cheeks"
    NOSE = "nose"
    LIP_CORNERS = "lip corners"
    LIPS = "lips"
    CHIN = "chin"


@dataclass(frozen=True, eq=False)
class Look:
    """Defines a visible state of a region. If `units` is empty, no action unit of the region is active.

    Looks are compared by identity, because two looks may have the same action units and different phrases.

    Attributes:
        units: The numbers of the action units that cause the look.
        clauses: Main clauses for local sentences.
        cues: Noun phrases for summaries.
    """

    units: tuple[int, ...]
    clauses: Phrases
    cues: Phrases

    def covers(self, band: Band) -> bool:
        """Returns whether there is a clause for this band of the first action unit."""
        return any(band in bands for bands in self.clauses)


@dataclass(frozen=True, slots=True)
class RegionState:
    """Describes one region of a face by its look and by the band of each action unit of the look."""

    region: Region
    look: Look
    bands: tuple[Band, ...] = ()

    @property
    def at_rest(self) -> bool:
        return not self.look.units

    def clauses(self) -> Words:
        return self._matching(self.look.clauses)

    def cues(self) -> Words:
        """Returns the noun phrases for this state; there are none if a summary never names the state."""
        return self._matching(self.look.cues)

    def _matching(self, phrases: Phrases) -> Words:
        found = (words for bands, words in phrases.items() if self.at_rest or self.bands[0] in bands)
        return tuple(phrase for words in found for phrase in words)


def _look(units: tuple[int, ...], *clauses: str, cues: Words = ()) -> Look:
    """Returns a look whose phrases fit every band of intensity."""
    return Look(units, {BANDS: clauses}, {BANDS: cues})


BROWS_RAISED_TOGETHER = _look(
    (1, 2, 4),
    "the eyebrows are {how} raised and drawn together",
    "the eyebrows are {how} lifted and drawn towards each other",
    "both eyebrows are {how} raised while they are drawn together",
    cues=("eyebrows that are {how} raised and drawn together",),
)
BROWS_RAISED = _look(
    (1, 2),
    "the eyebrows are {how} raised",
    "both eyebrows are {how} lifted",
    "the eyebrows are {how} arched",
    "the inner and outer ends of the eyebrows are {how} raised",
    cues=("{how} raised eyebrows", "{how} lifted eyebrows", "{how} arched eyebrows"),
)
INNER_BROWS_RAISED_TOGETHER = _look(
    (1, 4),
    "the inner ends of the eyebrows are {how} raised and {also} drawn together",
    "the eyebrows slant {how} upwards towards the middle and are {also} drawn together",
    cues=("eyebrows that are {how} raised at the inner ends and {also} drawn together",),
)
INNER_BROWS_RAISED = _look(
    (1,),
    "the inner ends of the eyebrows are {how} raised",
    "the eyebrows are {how} raised at their inner ends",
    "the eyebrows slant {how} upwards towards the middle",
    cues=("{how} raised inner eyebrows", "eyebrows that slant {how} upwards towards the middle"),
)
OUTER_BROWS_RAISED = _look(
    (2,),
    "the outer ends of the eyebrows are {how} raised",
    "the tails of the eyebrows are {how} raised",
    cues=("{how} raised outer eyebrows", "eyebrows that are {how} raised at the outer ends"),
)
BROWS_DRAWN_TOGETHER = _look(
    (4,),
    "the eyebrows are {how} lowered and drawn together",
    "the eyebrows are {how} drawn down and together",
    "the brow is {how} furrowed",
    "the eyebrows are {how} pinched together",
    cues=("{how} knitted eyebrows", "a {how} furrowed brow"),
)
BROWS_LOWERED = _look(
    (4,),
    "the eyebrows are {how} lowered",
    "the eyebrows are {how} drawn down towards the eyes",
    cues=("{how} lowered eyebrows",),
)

EYES_CLOSED = Look(
    (43,),
    {
        (Band.MODERATE,): ("the eyes are half closed", "the eyelids cover about half of the eyes"),
        (Band.STRONG,): ("the eyes are almost closed", "the eyes are nearly shut"),
        (Band.EXTREME,): ("the eyes are closed", "both eyes are shut", "the eyelids are closed"),
    },
    {
        (Band.MODERATE,): ("half-closed eyes",),
        (Band.STRONG,): ("almost closed eyes", "nearly shut eyes"),
        (Band.EXTREME,): ("closed eyes", "closed eyelids"),
    },
)
EYES_CLOSED_OR_NEARLY = _look(
    (43,),
    "the eyes are closed or nearly closed",
    "the eyelids are shut or almost shut",
    cues=("closed or nearly closed eyes",),
)
LIDS_LOWERED = _look(
    (43,),
    "the upper eyelids are {how} lowered",
    "the upper eyelids droop {how}",
    "the upper eyelids sink {how} over the eyes",
    cues=("{how} lowered upper eyelids", "{how} drooping eyelids"),
)
LIDS_RAISED_AND_TENSED = _look(
    (5, 7),
    "the upper eyelids are {how} raised and the lower eyelids are {also} tensed",
    "the eyes are {how} widened and the lower eyelids are {also} tightened",
)
EYES_WIDENED = Look(
    (5,),
    {
        BANDS: (
            "the eyes are {how} widened",
            "the upper eyelids are {how} raised",
            "the eyes are {how} widened to show more of the white",
        ),
        BANDS[3:]: ("the eyes are wide open", "the eyes are opened very wide"),
    },
    {BANDS: ("{how} widened eyes", "{how} raised upper eyelids"), BANDS[3:]: ("wide-open eyes",)},
)
EYES_NARROWED_TIGHTLY = _look(
    (6, 7),
    "the eyes are {how} narrowed by the raised cheeks and the eyelids are {also} tightened",
    "the lower eyelids are {how} pushed up by the cheeks and {also} tightened",
)
LIDS_TIGHTENED = _look(
    (7,),
    "the eyelids are {how} tightened",
    "the eyes are {how} narrowed",
    "the lower eyelids are {how} tensed",
    "the eyes squint {how}",
    cues=("{how} tightened eyelids", "{how} narrowed eyes"),
)
EYES_NARROWED_BY_CHEEKS = _look(
    (6,),
    "the eyes are {how} narrowed by the raised cheeks",
    "the lower eyelids are {how} pushed up by the cheeks",
    "the skin at the outer corners of the eyes is {how} crinkled",
)

CHEEKS_RAISED = _look(
    (6,),
    "the cheeks are {how} raised",
    "the cheeks are {how} lifted towards the eyes",
    "the cheeks are {how} raised and rounded",
    "the apples of the cheeks are {how} pushed up",
    cues=("{how} raised cheeks", "{how} lifted cheeks"),
)
CHEEKS_DIMPLED = _look((14,), "the cheeks are {how} dimpled", "the cheeks are {how} dimpled beside the mouth")

NOSE_WRINKLED_AND_LIP_RAISED = _look(
    (9, 10),
    "the nose is {how} wrinkled and the nasolabial folds are {also} deepened",
    "the nose is {how} wrinkled above a {also} raised upper lip",
)
NOSE_WRINKLED = _look(
    (9,),
    "the nose is {how} wrinkled",
    "the bridge of the nose is {how} creased",
    "the skin along the sides of the nose is {how} wrinkled",
    "the nose is {how} scrunched up",
    cues=("a {how} wrinkled nose", "a {how} scrunched nose"),
)
FOLDS_DEEPENED_BY_LIP = _look(
    (10,), "the nasolabial folds are {how} deepened", "the nasolabial folds are {how} deepened by the raised upper lip"
)
FOLDS_DEEPENED_BY_SMILE = _look(
    (12,),
    "the nasolabial folds are {how} deepened",
    "the nasolabial folds are {how} deepened by the smile",
    cues=("{how} deepened nasolabial folds",),
)

UPPER_LIP_RAISED = _look(
    (10,),
    "the upper lip is {how} raised",
    "the upper lip is {how} lifted towards the nose",
    "the upper lip rises {how}",
    cues=("a {how} raised upper lip", "a {how} lifted upper lip"),
)
LIP_CORNERS_RAISED = _look(
    (12,),
    "the corners of the mouth are {how} raised",
    "the corners of the mouth are {how} pulled up",
    "the corners of the mouth are {how} turned up in a smile",
    "the corners of the mouth curve {how} upwards",
    cues=("{how} raised lip corners", "{how} upturned lip corners"),
)
LIP_CORNERS_TUCKED_IN = _look(
    (14,),
    "the corners of the mouth are {how} tucked in",
    "the corners of the mouth are {how} tightened",
    cues=("{how} tightened lip corners", "{how} dimpled cheeks"),
)
LIP_CORNERS_LOWERED = _look(
    (15,),
    "the corners of the mouth are {how} pulled down",
    "the corners of the mouth are {how} turned down",
    "the corners of the mouth are {how} lowered",
    "the corners of the mouth droop {how}",
    cues=("{how} lowered lip corners", "{how} downturned lip corners"),
)
LOWER_LIP_PUSHED_UP = _look(
    (17,), "the lower lip is {how} pushed up", "the lower lip is {how} pushed up against the upper lip"
)
LIPS_PUCKERED = _look((18,), "the lips are {how} puckered", "the lips are {how} rounded", cues=("{how} puckered lips",))
LIPS_STRETCHED = _look(
    (20,),
    "the lips are {how} stretched",
    "the lips are {how} stretched sideways",
    "the lips are {how} drawn out to the sides",
    cues=("{how} stretched lips",),
)
LIPS_TIGHTENED = _look(
    (23,),
    "the lips are {how} tightened",
    "the lips are {how} narrowed",
    "the lips are {how} thinned",
    cues=("{how} tightened lips", "{how} narrowed lips"),
)
LIPS_PRESSED = Look(
    (24,),
    {
        BANDS: ("the lips are {how} pressed together",),
        BANDS[3:]: ("the lips are pressed into a thin line",),
    },
    {BANDS: ("{how} pressed lips", "lips that are {how} pressed together")},
)
LIPS_PARTED = Look(
    (25,),
    {
        BANDS[:3]: ("the lips are {how} parted", "the lips are {how} separated"),
        BANDS[2:3]: ("the mouth is open",),
        BANDS[3:]: ("the mouth is wide open", "the lips are wide apart"),
    },
    {BANDS[:3]: ("{how} parted lips",), BANDS[3:]: ("a wide-open mouth", "widely parted lips")},
)
JAW_DROPPED = _look(
    (26,),
    "the jaw is {how} lowered",
    "the jaw is {how} dropped and the mouth is open",
    "the mouth hangs open and the jaw is {how} lowered",
    cues=("a {how} lowered jaw", "a {how} dropped jaw"),
)
MOUTH_CLOSED = _look((), "the mouth is closed", "the mouth stays closed")
"""This look only follows another look of the mouth whose action units do not open the mouth."""

CHIN_RAISED = _look(
    (17,),
    "the chin is {how} pushed up",
    "the chin is {how} wrinkled and pushed up",
    "the skin of the chin is {how} bunched",
    cues=("a {how} wrinkled chin", "a {how} bunched chin"),
)

AT_REST: Mapping[Region, Look] = {
    Region.EYEBROWS: _look(
        (),
        "the eyebrows are at rest",
        "the eyebrows are relaxed",
        "the eyebrows are neither raised nor lowered",
        "the eyebrows are in their natural position",
    ),
    Region.EYES: _look(
        (),
        "the eyes are open and relaxed",
        "both eyes are open and relaxed",
        "the eyelids are relaxed and the eyes are open",
        "the eyes are open in a natural way",
    ),
    Region.CHEEKS: _look((), "the cheeks are at rest", "the cheeks are relaxed", "the cheeks are soft and relaxed"),
    Region.NOSE: _look(
        (),
        "the nose is relaxed",
        "the nose is not wrinkled",
        "the nose and the nasolabial folds are at rest",
        "the nose and the nasolabial folds are relaxed",
    ),
    Region.LIP_CORNERS: _look(
        (),
        "the corners of the mouth are at rest",
        "the corners of the mouth are neither raised nor lowered",
    ),
    Region.LIPS: _look(
        (),
        "the mouth is closed and relaxed",
        "the lips are closed and relaxed",
        "the lips are closed and show no tension",
    ),
    Region.CHIN: _look((), "the chin shows no tension", "the chin is relaxed", "the chin and the jaw are relaxed"),
}
