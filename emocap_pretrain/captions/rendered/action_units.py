"""Defines the facial action units that are drawn here, and the strength with which each one acts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
        20: "lip stretcher",
        23: "lip tightener",
        25: "lips part",
        26: "jaw drop",
        43: "eye closure",
    }
)
"""Action unit number to its name in the Facial Action Coding System (Ekman, Friesen and Hager 2002)."""

VISIBLE = 0.1
"""A weaker action counts as absent: it is stored as 0, drawn as 0 and never mentioned."""

BANDS = ("trace", "slight", "moderate", "strong", "extreme")
"""Five bands of intensity, A to E in FACS, from the weakest to the strongest."""

_FLOORS = (VISIBLE, 0.2, 0.4, 0.6, 0.8)


def band(intensity: float) -> str:
    """Returns the band of a visible intensity in [VISIBLE, 1].

    Raises:
        ValueError: If `intensity` is too weak to be seen.
    """
    if intensity < VISIBLE:
        raise ValueError(f"intensity={intensity} has no band; the weakest visible one is {VISIBLE}.")
    return BANDS[sum(intensity >= floor for floor in _FLOORS) - 1]


@dataclass(frozen=True, slots=True)
class Actions:
    """The actions of a face: `actions[12]` is the intensity of AU 12 in [0, 1], and 0 if it does not act.

    `strength` contains known action units only, each at VISIBLE or more.
    """

    strength: Mapping[int, float] = field(default_factory=dict[int, float])

    def __post_init__(self) -> None:
        for unit, value in self.strength.items():
            if unit not in NAMES:
                raise ValueError(f"AU{unit} is not drawn here; known are {sorted(NAMES)}.")
            if not VISIBLE <= value <= 1:
                raise ValueError(f"AU{unit}={value} is outside [{VISIBLE}, 1]; leave out units that do not act.")

    def __getitem__(self, unit: int) -> float:
        return self.strength.get(unit, 0.0)

    def __contains__(self, unit: object) -> bool:
        return unit in self.strength

    def __iter__(self) -> Iterator[int]:
        """Returns the acting units, in the order of their numbers."""
        return iter(sorted(self.strength))

    def any(self, *units: int) -> bool:
        return any(unit in self.strength for unit in units)


def actions(strength: Mapping[int, float]) -> Actions:
    """Clips strengths to [0, 1], rounds them to hundredths, and removes those that nobody could see."""
    clipped = {unit: round(min(max(float(value), 0.0), 1.0), 2) for unit, value in strength.items()}
    return Actions({unit: value for unit, value in clipped.items() if value >= VISIBLE})
