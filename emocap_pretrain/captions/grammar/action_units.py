"""Names the action units of the face and their intensities in the vocabulary of FACS.

FACS is the Facial Action Coding System (Ekman, Friesen and Hager 2002).
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

Words = tuple[str, ...]


class Band(StrEnum):
    """The intensity of an action unit in five bands, which are A to E in FACS, from the weakest to the strongest."""

    TRACE = "trace"
    SLIGHT = "slight"
    MODERATE = "moderate"
    STRONG = "strong"
    EXTREME = "extreme"


class Degree(StrEnum):
    """An intensity in three degrees: that of an emotion, and that of an adverb in running text."""

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


NAMES: Mapping[int, str] = MappingProxyType(
    {
        1: "inner brow raiser",
        2: "outer brow raiser",
        4: "brow lowerer",
        5: "upper lid raiser",
        6: "cheek raiser",
        7: "lid tightener",
        9: "nose wrinkler",
        10: "upper lip raiser",
        12: "lip corner puller",
        14: "dimpler",
        15: "lip corner depressor",
        17: "chin raiser",
        18: "lip pucker",
        20: "lip stretcher",
        23: "lip tightener",
        24: "lip pressor",
        25: "lips part",
        26: "jaw drop",
        43: "eye closure",
    }
)
"""The FACS name of each action unit that a caption can mention."""

MOVEMENTS: Mapping[int, str] = {
    1: "inner brow raising",
    2: "outer brow raising",
    4: "brow lowering",
    5: "upper lid raising",
    6: "cheek raising",
    7: "lid tightening",
    9: "nose wrinkling",
    10: "upper lip raising",
    12: "lip corner pulling",
    14: "dimpling",
    15: "lip corner lowering",
    17: "chin raising",
    18: "lip puckering",
    20: "lip stretching",
    23: "lip tightening",
    24: "lip pressing",
    25: "lip parting",
    26: "jaw lowering",
    43: "eye closure",
}
"""The movement that each action unit makes, as a noun without an article; no noun is used by two units."""

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
"""The adverbs of running text, which has fewer steps than the intensity of a named action unit."""

DEGREE_OF: Mapping[Band, Degree] = {
    Band.TRACE: Degree.LOW,
    Band.SLIGHT: Degree.LOW,
    Band.MODERATE: Degree.MID,
    Band.STRONG: Degree.HIGH,
    Band.EXTREME: Degree.HIGH,
}
