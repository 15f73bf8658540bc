"""Defines the person of a face: everything that an expression does not change."""

from dataclasses import dataclass

import numpy as np

from emocap_pretrain.captions.rendered import palette
from emocap_pretrain.captions.rendered.palette import Colour

HAIR_STYLES = (
    "bald",
    "buzz",
    "short",
    "swept",
    "quiff",
    "curly",
    "afro",
    "bob",
    "long",
    "wavy",
    "bun",
    "scarf",
)
BEARDS = ("none", "stubble", "moustache", "full")
GLASSES = ("none", "round", "square")


@dataclass(frozen=True, slots=True)
class Identity:
    """A person. Sizes are factors around 1 of the average face, unless stated otherwise.

    Attributes:
        age: 0 is about twenty years old, 1 about eighty.
        eye_tilt: Rise of the outer eye corner, in units of half a face width.
        brow_arch: Extra height of the arch, in units of half a face width.
        liner: Weight of the lash line in [0, 1]; from 0.5 on with lashes.
        freckles: In [0, 1]; none below 0.5.
        marks: Seed of the small marks (freckles, strands).
    """

    age: float
    width: float
    jaw: float
    chin: float
    forehead: float
    eye_size: float
    eye_gap: float
    eye_tilt: float
    brow_weight: float
    brow_arch: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lips: float
    liner: float
    freckles: float
    blush: float
    skin: Colour
    hair: Colour
    iris: Colour
    lip: Colour
    cloth: Colour
    hair_style: str
    beard: str
    glasses: str
    earrings: bool
    marks: int


def person(rng: np.random.Generator) -> Identity:
    """Samples a person; no trait depends on the emotion."""
    age = float(rng.beta(1.3, 2.2))
    skin = palette.skin(float(rng.random()), float(rng.uniform(-1, 1)))
    style = _pick(rng, HAIR_STYLES, (0.06, 0.06, 0.13, 0.11, 0.08, 0.09, 0.06, 0.1, 0.11, 0.08, 0.08, 0.04))
    bearded = style in {"bald", "buzz", "short", "swept", "quiff", "curly", "afro"}
    return Identity(
        age=age,
        width=_around(rng, 0.05),
        jaw=_around(rng, 0.08),
        chin=_around(rng, 0.05),
        forehead=_around(rng, 0.04),
        eye_size=_around(rng, 0.08),
        eye_gap=_around(rng, 0.04),
        eye_tilt=float(rng.normal(0.015, 0.02)),
        brow_weight=_around(rng, 0.22),
        brow_arch=float(rng.normal(0.0, 0.02)),
        nose_width=_around(rng, 0.12),
        nose_length=_around(rng, 0.06),
        mouth_width=_around(rng, 0.07),
        lips=_around(rng, 0.18),
        liner=float(rng.random()) * (0.5 if bearded else 1.0),
        freckles=float(rng.random()) if rng.random() < 0.3 else 0.0,
        blush=float(rng.random()),
        skin=skin,
        hair=palette.hair(rng, age),
        iris=palette.iris(rng),
        lip=palette.lip(skin, float(rng.random()), made_up=not bearded and rng.random() < 0.35),
        cloth=palette.cloth(rng),
        hair_style=style,
        beard=_pick(rng, BEARDS, (0.5, 0.22, 0.12, 0.16)) if bearded else "none",
        glasses=_pick(rng, GLASSES, (0.8, 0.1, 0.1)),
        earrings=not bearded and bool(rng.random() < 0.4),
        marks=int(rng.integers(2**31)),
    )


def _around(rng: np.random.Generator, spread: float) -> float:
    """Returns a factor of about 1 that differs from it by at most two spreads."""
    return float(np.clip(rng.normal(1.0, spread), 1 - 2 * spread, 1 + 2 * spread))


def _pick(rng: np.random.Generator, names: tuple[str, ...], odds: tuple[float, ...]) -> str:
    return names[int(np.searchsorted(np.cumsum(odds), rng.random() * sum(odds), side="right"))]
