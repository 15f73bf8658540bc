"""Computes, from the mesh points of a face, how much speaks for each movement of its parts.

A movement has a gauge (`population.py`), whose rank in a population is the share of faces that show less of the
movement. The evidence is

    evidence = clip(1/2 + (rank - (1 - share)) / (2 * width), 0, 1)

`share` is the assumed share of the faces of the population on which the movement is visible. So the evidence is 1/2 on
the face from which on the movement would be visible. `width` is `RAMP`; above this face it is at most `share`, so that
the evidence is 1 on the face with the strongest movement.

A rank says nothing without its population: where half of all faces smile, a smile of median strength has the rank 0.75,
and where one of ten faces smiles, the rank 0.95. `share` cannot be known without labels. The ramp is wide for this
reason: a population with other base rates shifts the evidence, and seldom turns it round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from emocap_pretrain.captions.face_mesh.geometry import (
    MAX_PITCH_DEG,
    MAX_YAW_DEG,
    Measurements,
    PerFace,
    measure,
    measure_side,
)
from emocap_pretrain.checking.movements import MOVEMENTS
from emocap_pretrain.checking.population import (
    GAUGES,
    MAX_FAR_DEG,
    SIDES,
    FacePopulation,
    Gauge,
    gauged,
    gauged_side,
)

RAMP = 0.25
"""Half the width of the range of ranks in which the evidence rises from 0 to 1."""

ANY_OF: Mapping[str, Sequence[str]] = {
    **{name: movement.any_of for name, movement in MOVEMENTS.items() if movement.any_of},
    "folds_deepened": ("lip_corners_raised", "upper_lip_raised"),
}
"""Movements that are seen by others: one of them is enough."""

OPPOSITES: Mapping[str, str] = {"mouth_closed": "lips_parted", "eyes_open": "eyes_closed"}
"""Movements of which the evidence is that against another one."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Says how much speaks for a movement of a face.

    Attributes:
        value: In [0, 1]; None if the movement cannot be judged on this face.
        rank: Share of the faces of the population that show less of the movement; None if `value` is None.
        gauge: The gauge of the rank; None if `value` is None.
        subject: What the gauge measures, with its verb, such as "the eyebrows are", if it is not the movement that was
            asked for.
        is_opposite: Whether `rank` is that of the opposite movement.
        why_not: If `value` is None, a clause that says why, such as "the mouth is open".
    """

    value: float | None
    rank: float | None = None
    gauge: Gauge | None = None
    subject: str = ""
    is_opposite: bool = False
    why_not: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredFace:
    """Holds the ranks of one face in a population, and gives the evidence for each movement.

    Attributes:
        population: The population.
        whole: Ranks of the measures of the whole face; NaN where a point is missing or the head is turned too far.
        sides: Ranks of the measures of each half, by "left" and "right".
        yaw_deg: Yaw of the head, positive if the left half is the farther one.
        pitch_deg: Pitch of the head.
    """

    population: FacePopulation
    whole: Mapping[str, float]
    sides: Mapping[str, Mapping[str, float]]
    yaw_deg: float
    pitch_deg: float

    def of(self, movement: str, side: str = "") -> Evidence:
        """Returns the evidence for a movement.

        Args:
            movement: Name of the movement (`MOVEMENTS`).
            side: "left" or "right" from the subject's point of view, "one" if exactly one of them moves, "both", or ""
                for the face as a whole.
        """
        if MOVEMENTS[movement].at_rest:
            return self._at_rest(MOVEMENTS[movement].region, side)
        if movement in OPPOSITES:
            return _against(self.of(OPPOSITES[movement], side), OPPOSITES[movement])
        if movement in ANY_OF:
            return _strongest({each: self.of(each, side) for each in ANY_OF[movement]})
        if movement not in GAUGES:
            return Evidence(None, why_not="nothing measures this movement reliably")
        return self._gauged(movement, side)

    def _gauged(self, movement: str, side: str) -> Evidence:
        if side in {"left", "right"}:
            return self._of_side(movement, side)
        if side == "one" or (side == "both" and GAUGES[movement].sided):
            return self._of_sides(movement, together=side == "both")
        return self._hidden(movement) or self._ranked(movement, movement, gauged(GAUGES[movement], _arrays(self.whole)))

    def _ranked(self, movement: str, quantiles: str, mean: PerFace) -> Evidence:
        gauge, value = GAUGES[movement], float(mean)
        if not np.isfinite(value):
            turned = abs(self.yaw_deg) > MAX_YAW_DEG or abs(self.pitch_deg) > MAX_PITCH_DEG
            why_not = (
                "the head is turned too far" if turned else "a point that it needs is missing or outside the image"
            )
            return Evidence(None, why_not=why_not)
        rank = self.population.rank(quantiles, value)
        return Evidence(evidence_of(rank, gauge.share), rank, gauge)

    def _of_side(self, movement: str, side: str) -> Evidence:
        gauge = GAUGES[movement]
        if not gauge.sided:
            return Evidence(None, why_not="no measure of this movement tells the sides apart")
        if (self.yaw_deg if side == "left" else -self.yaw_deg) > MAX_FAR_DEG:
            return Evidence(None, why_not=f"the head is turned, so the {side} half of the face is hidden")
        return self._hidden(movement) or self._ranked(
            movement, f"{movement}/side", gauged_side(gauge, _arrays(self.sides[side]))
        )

    def _of_sides(self, movement: str, *, together: bool) -> Evidence:
        """Returns the evidence for both sides (that of the weaker one), or for exactly one of them."""
        found = [self._of_side(movement, side) for side in SIDES]
        unknown = [each for each in found if each.value is None]
        if unknown:
            # What is not known of a side is known of the face; nobody can say that it is one side alone.
            return self.of(movement) if together else unknown[0]
        weaker, stronger = min(found, key=_value), max(found, key=_value)
        if together:
            whole = self.of(movement)
            return min((weaker, whole), key=_value) if whole.value is not None and _value(weaker) < 0.25 else whole
        return Evidence(_value(stronger) * (1 - _value(weaker)), stronger.rank, stronger.gauge)

    def _hidden(self, movement: str) -> Evidence | None:
        """Returns the abstention for a movement that another movement hides on this face."""
        gate = _GATES.get(movement)
        if gate is None:
            return None
        accepts, why_not = gate
        return None if accepts(self.whole) else Evidence(None, why_not=why_not)

    def _at_rest(self, region: str, side: str) -> Evidence:
        """Returns the evidence that no movement of a region is visible, from the one for which most speaks.

        Of several gauges one is often above its median, so only evidence above 1/2 speaks against rest.
        """
        names = [name for name in GAUGES if MOVEMENTS[name].region == region]
        found = {name: each for name in names if (each := self.of(name, side)).value is not None}
        if not found:
            return Evidence(None, why_not="nothing measures this region on this face")
        strongest = max(found, key=lambda name: _value(found[name]))
        return replace(_against(found[strongest], strongest), value=min(1.0, 2 - 2 * _value(found[strongest])))


def measured_face(landmarks: Float[np.ndarray, "478 3"], population: FacePopulation) -> MeasuredFace:
    """Compares one face with a population. Points that are NaN are missing."""
    whole = measure(landmarks[None])
    ranks = _first(population.whole.ranks(whole))
    sides = {side: _first(population.sides.ranks(measure_side(landmarks[None], side))) for side in SIDES}
    return MeasuredFace(population, ranks, sides, float(whole["yaw_deg"][0]), float(whole["pitch_deg"][0]))


def _first(measurements: Measurements) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measurements.items()}


_SMILING = 0.7  # The rank of the lip corners from which on a wide mouth is rather a smile.
_OPEN = 0.6  # The rank of the opening of the mouth from which on lips and their corners are not compared.
_OBLIQUE = 0.5  # The rank of the slant of the eyebrows from which on their inner ends may be raised.

# A rank that is NaN passes: then the measure itself is NaN, or does not need it.
_GATES: Mapping[str, tuple[Callable[[Mapping[str, float]], bool], str]] = {
    "lip_corners_lowered": (lambda ranks: not ranks["mouth_opening"] > _OPEN, "the open mouth hides it"),
    "lips_puckered": (lambda ranks: not ranks["mouth_opening"] > _OPEN, "the open mouth hides it"),
    "lips_stretched": (lambda ranks: not ranks["corner_lift"] > _SMILING, "a smile makes the mouth wide too"),
    "brows_drawn_together": (
        lambda ranks: not ranks["brow_slant"] > _OBLIQUE,
        "the inner ends of the eyebrows are not low, and the distance between them is not measured reliably",
    ),
}


def evidence_of(rank: float, share: float) -> float:
    """Returns the evidence of a rank in [0, 1], if the movement is visible on `share` of the faces.

    >>> evidence_of(0.75, 0.25), evidence_of(0.3, 0.25), evidence_of(1.0, 0.25)
    (0.5, 0.0, 1.0)
    """
    above = rank - (1 - share)
    return float(np.clip(0.5 + above / (2 * (min(RAMP, share) if above > 0 else RAMP)), 0, 1))


def _arrays(ranks: Mapping[str, float]) -> dict[str, PerFace]:
    return {name: np.asarray(rank) for name, rank in ranks.items()}


def _value(evidence: Evidence) -> float:
    return evidence.value if evidence.value is not None else 0.0


def _against(evidence: Evidence, movement: str) -> Evidence:
    if evidence.value is None:
        return evidence
    subject = evidence.subject or _subject(movement)
    return replace(evidence, value=1 - evidence.value, subject=subject, is_opposite=True)


def _strongest(found: Mapping[str, Evidence]) -> Evidence:
    """Returns the strongest evidence; an unknown one counts unless another one is more likely than not."""
    name = max(found, key=lambda each: _value(found[each]))
    unknown = [each for each in found.values() if each.value is None]
    if unknown and _value(found[name]) < 0.5:
        return unknown[0]
    return replace(found[name], subject=found[name].subject or _subject(name))


def _subject(movement: str) -> str:
    return f"the {MOVEMENTS[movement].many} {'is' if MOVEMENTS[movement].singular else 'are'}"
