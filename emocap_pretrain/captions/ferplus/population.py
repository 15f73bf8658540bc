"""Ranks a measurement among those of many faces: only other eyes show whether an eye is wide."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from emocap_pretrain.captions.ferplus.geometry import MEASURES, Faces, Measurements

# How far the mouth opens is behaviour even where it goes with the pose: laughing heads do tilt back.
_FREE_OF_POSE = frozenset({"mouth_opening", "jaw_drop"})
_GRID = np.linspace(0, 1, 101)
_MIN_FACES = 20


@dataclass(frozen=True, slots=True)
class Reference:
    """One measure over a population: its quantiles at 0, 1, ... 100 % after the share of the pose is taken out."""

    quantiles: tuple[float, ...]
    per_pitch_deg: float
    per_turn_deg: float

    def upright(self, values: Faces, *, pitch_deg: Faces, turn_deg: Faces) -> Faces:
        return values - self.per_pitch_deg * pitch_deg - self.per_turn_deg * turn_deg


@dataclass(frozen=True, slots=True)
class Population:
    """The faces that all others are compared with, as a small value that goes through JSON."""

    references: Mapping[str, Reference]

    @classmethod
    def fit(cls, measurements: Measurements) -> "Population":
        """Returns the population of the faces that were found: NaN is left out.

        Raises:
            ValueError: If there are too few faces to speak of a population.
        """
        return cls({name: _fit(name, measurements) for name in MEASURES})

    def ranks(self, measurements: Measurements) -> Measurements:
        """The share of the population below each face, in [0, 1], for each measure; NaN where there is no face."""
        pitch_deg, turn_deg = measurements["pitch_deg"], np.abs(measurements["yaw_deg"])
        return {
            name: np.interp(
                reference.upright(measurements[name], pitch_deg=pitch_deg, turn_deg=turn_deg),
                reference.quantiles,
                _GRID,
            )
            for name, reference in self.references.items()
        }

    def dumps(self) -> str:
        return json.dumps({name: asdict(reference) for name, reference in self.references.items()}, indent=1)

    @classmethod
    def loads(cls, text: str) -> "Population":
        return cls(
            {
                name: Reference(tuple(row["quantiles"]), row["per_pitch_deg"], row["per_turn_deg"])
                for name, row in json.loads(text).items()
            }
        )


def _fit(name: str, measurements: Measurements) -> Reference:
    known = np.isfinite(measurements[name]) & np.isfinite(measurements["pitch_deg"])
    if known.sum() < _MIN_FACES:
        raise ValueError(
            f"{name} is known of {known.sum()} of {known.size} faces, but quantiles want {_MIN_FACES} or more; "
            "check the landmarks file, or use a population that was fitted elsewhere."
        )
    values, pitch_deg = measurements[name][known], measurements["pitch_deg"][known]
    turn_deg = np.abs(measurements["yaw_deg"][known])
    slopes = np.zeros(2)
    if name not in _FREE_OF_POSE:
        design = np.stack([pitch_deg, turn_deg, np.ones_like(pitch_deg)], axis=1)
        slopes = np.linalg.lstsq(design, values, rcond=None)[0][:2]
    reference = Reference((), per_pitch_deg=float(slopes[0]), per_turn_deg=float(slopes[1]))
    rest = reference.upright(values, pitch_deg=pitch_deg, turn_deg=turn_deg)
    return replace(reference, quantiles=tuple(float(quantile) for quantile in np.quantile(rest, _GRID)))
