"""Ranks what is measured of a face among the faces of a population.

A gauge is the mean of one or more ranks of measures of the face (`captions/face_mesh`), each turned so that more of a
movement gives a higher rank. A population holds the distributions of the measures and of the gauges over many faces,
and no face itself. `evidence.py` turns the rank of a gauge into evidence for a movement.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from emocap_pretrain.captions.face_mesh.geometry import (
    AHEAD,
    MEASURES,
    PerFace,
    Population,
    Reference,
    measure,
    measure_side,
)
from emocap_pretrain.errors import DataError

MAX_FAR_DEG = 20.0
"""The greatest yaw at which the far half of the face is measured by itself."""

MIN_FACES = 300
"""The fewest faces that are a population of their own."""

VERSION = 1
SIDES: Sequence[Literal["left", "right"]] = ("left", "right")
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Gauge:
    """Defines what measures a movement.

    Attributes:
        ranks: The signs of the measures whose ranks are averaged; with -1, a smaller measure is more of the movement.
        share: Assumed share of faces on which the movement is visible.
        more: Comparative of the movement, which fits before "than on 78 of 100 faces".
        less: The opposite comparative.
        sided: Whether each half of the face has these measures, so that one side can be judged by itself.
    """

    ranks: Mapping[str, int]
    share: float
    more: str
    less: str
    sided: bool = False


# The shares and the choice of measures were found with the first half of rendered faces; docs/checking.md has the
# results on the other half. Movements without an entry are not measured reliably (docs/checking.md says why).
GAUGES: Mapping[str, Gauge] = {
    "inner_brows_raised": Gauge({"brow_slant": 1}, 0.5, "higher", "lower", sided=True),
    "outer_brows_raised": Gauge({"brow_outer": 1, "brow_middle": 1}, 0.3, "higher", "lower", sided=True),
    "brows_raised": Gauge({"brow_inner": 1, "brow_middle": 1, "brow_outer": 1}, 0.3, "higher", "lower", sided=True),
    "brows_lowered": Gauge({"brow_inner": -1}, 0.25, "lower", "higher", sided=True),
    "brows_drawn_together": Gauge({"brow_inner": -1}, 0.3, "lower", "higher", sided=True),
    "eyes_widened": Gauge({"eye_aperture": 1}, 0.4, "wider open", "less open", sided=True),
    "eyes_closed": Gauge({"eye_aperture": -1}, 0.1, "less open", "wider open", sided=True),
    "lids_lowered": Gauge({"eye_aperture": -1}, 0.3, "less open", "wider open", sided=True),
    "eyes_narrowed": Gauge({"eye_aperture": -1, "lower_lid_lift": 1}, 0.5, "narrower", "wider", sided=True),
    "lids_tightened": Gauge({"eye_aperture": -1, "lower_lid_lift": 1}, 0.5, "narrower", "wider", sided=True),
    "eyes_pushed_by_cheeks": Gauge({"corner_lift": 1, "lower_lid_lift": 1}, 0.2, "more", "less", sided=True),
    "cheeks_raised": Gauge({"corner_lift": 1, "lower_lid_lift": 1}, 0.2, "more", "less", sided=True),
    "lip_corners_raised": Gauge({"corner_lift": 1, "mouth_width": 1}, 0.35, "higher", "lower", sided=True),
    "lip_corners_lowered": Gauge({"corner_curve": -1, "corner_lift": -1}, 0.25, "lower", "higher", sided=True),
    "lips_stretched": Gauge({"mouth_width": 1}, 0.3, "wider", "narrower"),
    "lips_puckered": Gauge({"mouth_width": -1, "lip_thickness": 1}, 0.2, "narrower", "wider"),
    "lips_pressed": Gauge({"lip_thickness": -1, "mouth_opening": -1}, 0.25, "thinner", "thicker"),
    "lips_parted": Gauge({"mouth_opening": 1}, 0.45, "wider open", "less open"),
    "jaw_dropped": Gauge({"mouth_opening": 1}, 0.25, "wider open", "less open"),
}


@dataclass(frozen=True, slots=True)
class FacePopulation:
    """Holds the distributions of measures and gauges over a set of faces, with which other faces are compared.

    Attributes:
        source: What the faces are, as a noun phrase.
        faces: Number of the faces.
        whole: The measures of whole faces.
        sides: The measures of halves of faces, left and right together.
        gauges: Quantiles at 0, 1, ... 100 % of each gauge of whole faces, and as "name/side" of halves.
    """

    source: str
    faces: int
    whole: Population
    sides: Population
    gauges: Mapping[str, Sequence[float]]

    @classmethod
    def fit(cls, landmarks: Float[np.ndarray, "faces 478 3"], source: str) -> "FacePopulation":
        """Returns the population of these faces. A face that is NaN is left out.

        Raises:
            ValueError: If too few faces have a value of some measure.
        """
        measured, halves = measure(landmarks), [measure_side(landmarks, side) for side in SIDES]
        # A face whose far half is hidden tells nothing about this half.
        both = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
        both = {name: np.where(both["turn_deg"] <= MAX_FAR_DEG, values, np.nan) for name, values in both.items()}
        whole, sides = Population.fit(measured), Population.fit(both)
        ranks, half_ranks = whole.ranks(measured), sides.ranks(both)
        gauges = {name: gauged(gauge, ranks) for name, gauge in GAUGES.items()}
        gauges |= {f"{name}/side": gauged_side(gauge, half_ranks) for name, gauge in GAUGES.items() if gauge.sided}
        return cls(
            source=source,
            faces=int(np.isfinite(measured["corner_lift"]).sum()),
            whole=whole,
            sides=sides,
            gauges={name: np.nanquantile(values, _GRID).tolist() for name, values in gauges.items()},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "source": self.source,
            "faces": self.faces,
            "whole": {name: _rounded(asdict(reference)) for name, reference in self.whole.references.items()},
            "sides": {name: _rounded(asdict(reference)) for name, reference in self.sides.references.items()},
            "gauges": _rounded(self.gauges),
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> "FacePopulation":
        """Reads what `to_json` gives.

        Raises:
            DataError: If the text is not such a document, or was written for other gauges.
        """
        try:
            stored = json.loads(text)
            if stored["version"] != VERSION:
                raise ValueError(f"its version is {stored['version']}, not {VERSION}")
            whole, sides = (
                {name: _reference(each) for name, each in stored[key].items()} for key in ("whole", "sides")
            )
            gauges = {name: _quantiles(values) for name, values in stored["gauges"].items()}
            sided = {f"{name}/side" for name, gauge in GAUGES.items() if gauge.sided}
            if missing := {*GAUGES, *sided, *MEASURES} - {*gauges, *whole}:
                raise ValueError(f"it lacks {min(missing)}")
            return cls(str(stored["source"]), int(stored["faces"]), Population(whole), Population(sides), gauges)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the population of faces cannot be read ({error}); write it again.") from error

    def rank(self, gauge: str, value: float) -> float:
        return float(np.interp(value, self.gauges[gauge], _GRID))


def _rounded(values: Any) -> Any:
    """Returns JSON values with six significant digits, which are finer than the landmarks."""
    if isinstance(values, Mapping):
        return {key: _rounded(value) for key, value in values.items()}
    return float(f"{values:.6g}") if isinstance(values, float) else [_rounded(value) for value in values]


def _reference(stored: Mapping[str, Any]) -> Reference:
    return Reference(
        tuple(_quantiles(stored["quantiles"])), float(stored["per_pitch_deg"]), float(stored["per_turn_deg"])
    )


def _quantiles(stored: Sequence[Any]) -> list[float]:
    values = [float(value) for value in stored]
    if len(values) != len(_GRID) or not np.isfinite(values).all():
        raise ValueError(f"a list of quantiles needs {len(_GRID)} finite numbers")
    return values


def _oriented(sign: int, rank: PerFace) -> PerFace:
    return rank if sign > 0 else 1 - rank


def gauged(gauge: Gauge, ranks: Mapping[str, PerFace]) -> PerFace:
    return np.mean([_oriented(sign, ranks[name]) for name, sign in gauge.ranks.items()], axis=0)


def gauged_side(gauge: Gauge, ranks: Mapping[str, PerFace]) -> PerFace:
    """Returns the mean of the ranks of one half and of the ranks of its lead over the other half.

    Persons differ more than the halves of one face, so the lead tells more about the side of a movement.
    """
    own = [
        _oriented(sign, ranks[full])
        for name, sign in gauge.ranks.items()
        for full in (name, f"{name}{AHEAD}")
        if full in ranks
    ]
    return np.mean(own, axis=0)
