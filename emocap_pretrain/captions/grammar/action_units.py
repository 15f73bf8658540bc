"""Names the action units of the face and their intensities.

The names are those of FACS, the Facial Action Coding System (Ekman, Friesen and Hager 2002).

The intensity of an action unit lies in one of five bands (`Band`). The intensity of an emotion has one of three degrees
(`Degree`). An adverb such as "slightly" also has a degree. `DEGREE_OF` maps bands to degrees, so that a phrase about an
action unit gets an adverb that fits its band.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from emocap_pretrain.captions.grammar.words import WORDS, Words


class Band(StrEnum):
    """Names the five bands of the intensity of an action unit, from the weakest to the strongest (A to E in FACS)."""

    TRACE = "trace"
    SLIGHT = "slight"
    MODERATE = "moderate"
    STRONG = "strong"
    EXTREME = "extreme"


class Degree(StrEnum):
    """Names the three degrees of intensity of an emotion, or of an adverb such as "slightly"."""

    LOW = "low"
    MID = "mid"
    HIGH = "high"


BANDS = tuple(Band)

VISIBLE = 0.1
"""The weakest visible intensity of an action unit, in [0, 1]; a weaker action is never mentioned."""

_FLOORS = (VISIBLE, 0.2, 0.4, 0.6, 0.8)  # The weakest intensity of each band, from trace to extreme.


def band(intensity: float) -> Band:
    """Returns which of the five bands contains an intensity in [VISIBLE, 1].

    >>> band(0.1), band(0.5), band(1.0)
    (<Band.TRACE: 'trace'>, <Band.MODERATE: 'moderate'>, <Band.EXTREME: 'extreme'>)

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
    int(unit): ActionUnit(*names) for unit, names in WORDS["action_units"].items()
}
"""The action units that a caption can mention; no two have the same movement."""

ADJECTIVES: Mapping[Band, Words] = WORDS["adjectives"]
LEVELS: Mapping[Band, Words] = WORDS["levels"]
ADVERBS: Mapping[Degree, Words] = WORDS["adverbs"]
DEGREE_OF: Mapping[Band, Degree] = {
    Band.TRACE: Degree.LOW,
    Band.SLIGHT: Degree.LOW,
    Band.MODERATE: Degree.MID,
    Band.STRONG: Degree.HIGH,
    Band.EXTREME: Degree.HIGH,
}
