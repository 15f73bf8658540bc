"""Names the action units of the face and their intensities.

The names are those of FACS, the Facial Action Coding System (Ekman, Friesen and Hager 2002).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

Words = tuple[str, ...]


class Band(StrEnum):
    """Names the five bands of the intensity of an action unit, from the weakest to the strongest; A to E in FACS."""

    TRACE = "trace"
    SLIGHT = "slight"
    MODERATE = "moderate"
    STRONG = "strong"
    EXTREME = "extreme"


class Degree(StrEnum):
    """Names three degrees of intensity, which emotions have, and adverbs such as "slightly"."""

    LOW = "low"
    MID = "mid"
    HIGH = "high"


BANDS = tuple(Band)

VISIBLE = 0.1
"""The weakest visible intensity of an action unit, in [0, 1]; a weaker action is never mentioned."""

_FLOORS = (VISIBLE, 0.2, 0.4, 0.6, 0.8)


def band(intensity: float) -> Band:
    """Returns the band of a visible intensity in [VISIBLE, 1].

    Raises:
        ValueError: If `intensity` is too weak to be visible.
    """
    if intensity < VISIBLE:
        raise ValueError(f"intensity={intensity} has no band; the weakest visible one is {VISIBLE}.")
    return BANDS[sum(intensity >= floor for floor in _FLOORS) - 1]


@dataclass(frozen=True, slots=True)
class ActionUnit:
    """Holds the FACS name of an action unit, and its movement as a noun phrase without an article."""

    name: str
    movement: str


ACTION_UNITS: Mapping[int, ActionUnit] = {
    1: ActionUnit("inner brow raiser", "inner brow raising"),
    2: ActionUnit("outer brow raiser", "outer brow raising"),
    4: ActionUnit("brow lowerer", "brow lowering"),
    5: ActionUnit("upper lid raiser", "upper lid raising"),
    6: ActionUnit("cheek raiser", "cheek raising"),
    7: ActionUnit("lid tightener", "lid tightening"),
    9: ActionUnit("nose wrinkler", "nose wrinkling"),
    10: ActionUnit("upper lip raiser", "upper lip raising"),
    12: ActionUnit("lip corner puller", "lip corner pulling"),
    14: ActionUnit("dimpler", "dimpling"),
    15: ActionUnit("lip corner depressor", "lip corner lowering"),
    17: ActionUnit("chin raiser", "chin raising"),
    18: ActionUnit("lip pucker", "lip puckering"),
    20: ActionUnit("lip stretcher", "lip stretching"),
    23: ActionUnit("lip tightener", "lip tightening"),
    24: ActionUnit("lip pressor", "lip pressing"),
    25: ActionUnit("lips part", "lip parting"),
    26: ActionUnit("jaw drop", "jaw lowering"),
    43: ActionUnit("eye closure", "eye closure"),
}
"""The action units that a caption can mention; no two have the same movement."""

ADJECTIVES: Mapping[Band, Words] = {
    Band.TRACE: ("barely visible", "minimal", "faint", "just noticeable", "scarcely perceptible"),
    Band.SLIGHT: ("slight", "mild", "weak", "modest"),
    Band.MODERATE: ("moderate", "clear", "distinct", "noticeable"),
    Band.STRONG: ("strong", "pronounced", "marked", "considerable", "substantial"),
    Band.EXTREME: ("extreme", "maximal", "intense"),
}
"""The adjectives that fit before a movement; no adjective is used by two bands."""

LEVELS: Mapping[Band, Words] = {
    Band.TRACE: ("trace", "minimal"),
    Band.SLIGHT: ("slight", "low", "mild"),
    Band.MODERATE: ("moderate", "medium"),
    Band.STRONG: ("strong", "high", "marked"),
    Band.EXTREME: ("extreme", "maximum"),
}
"""The words that fit into "at ... intensity"; no word is used by two bands."""

ADVERBS: Mapping[Degree, Words] = {
    Degree.LOW: ("slightly", "subtly"),
    Degree.MID: ("clearly", "noticeably", "visibly", "moderately", "distinctly"),
    Degree.HIGH: ("strongly", "markedly", "considerably"),
}
"""The adverbs in phrases about a region. They have three degrees, while a named action unit has five bands."""

DEGREE_OF: Mapping[Band, Degree] = {
    Band.TRACE: Degree.LOW,
    Band.SLIGHT: Degree.LOW,
    Band.MODERATE: Degree.MID,
    Band.STRONG: Degree.HIGH,
    Band.EXTREME: Degree.HIGH,
}
