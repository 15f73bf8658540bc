"""Defines the seven basic emotions as prototypes of action units with a valence and an arousal.

The combinations of action units follow EMFACS (Ekman and Friesen 1978; Ekman and Rosenberg 2005). Valence and arousal
follow the circumplex model of Russell (1980). The exact numbers are this project's own choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from emocap_pretrain.captions.rendered.face import Actions, actions

EMOTIONS = ("neutral", "happiness", "sadness", "anger", "fear", "surprise", "disgust")


@dataclass(frozen=True, slots=True)
class Prototype:
    """Defines one way to show an emotion on the face.

    Attributes:
        name: Name of the prototype, which is a key of `SHADES` in the grammar of captions.
        emotion: One of `EMOTIONS`.
        core: The action units that are always sampled, each with its strength in (0, 1] at full intensity.
        valence: Pleasantness at full intensity, in [-1, 1].
        arousal: Activation at full intensity, in [-1, 1].
        extra: Further action units, each with its probability and with its strength in (0, 1] at full intensity.
    """

    name: str
    emotion: str
    core: Mapping[int, float]
    valence: float
    arousal: float
    extra: Mapping[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])


@dataclass(frozen=True, slots=True)
class Feeling:
    """Holds a sampled emotion, and the action units by which a face shows it.

    Attributes:
        emotion: One of `EMOTIONS`.
        shade: Name of the prototype from which the emotion was sampled, such as "joy" for happiness.
        intensity: Intensity of the emotion, in [0, 1]; at most 0.15 for neutral, at least 0.25 for all others.
        valence: Pleasantness of the emotion, in [-1, 1].
        arousal: Activation of the emotion, in [-1, 1].
        actions: The active action units.
    """

    emotion: str
    shade: str
    intensity: float
    valence: float
    arousal: float
    actions: Actions


PROTOTYPES = (
    Prototype("composure", "neutral", {}, 0.0, 0.0),
    Prototype("attention", "neutral", {}, 0.03, 0.12, {1: (0.3, 0.18), 2: (0.3, 0.16), 5: (0.5, 0.2)}),
    Prototype("ease", "neutral", {}, 0.08, -0.12, {25: (0.5, 0.28), 12: (0.4, 0.16), 43: (0.35, 0.3)}),
    Prototype("rest", "neutral", {43: 1.0}, 0.04, -0.4),
    Prototype("joy", "happiness", {6: 0.9, 12: 1.0, 25: 0.75}, 0.92, 0.55, {26: (0.3, 0.35), 7: (0.15, 0.3)}),
    Prototype("laughter", "happiness", {6: 1.0, 12: 0.95, 25: 0.9, 26: 0.6}, 0.88, 0.75, {43: (0.25, 0.9)}),
    Prototype("contentment", "happiness", {6: 0.5, 12: 0.7}, 0.75, -0.2, {43: (0.25, 0.95), 14: (0.2, 0.35)}),
    Prototype("cordiality", "happiness", {12: 0.75}, 0.5, 0.1, {25: (0.4, 0.4), 1: (0.3, 0.3), 2: (0.3, 0.3)}),
    Prototype("pride", "happiness", {12: 0.65, 14: 0.75}, 0.55, 0.2, {6: (0.4, 0.35), 43: (0.2, 0.3)}),
    Prototype("sorrow", "sadness", {1: 0.95, 4: 0.5, 15: 0.9}, -0.75, -0.45, {17: (0.5, 0.5), 43: (0.2, 0.4)}),
    Prototype("grief", "sadness", {1: 1.0, 4: 0.75, 15: 0.9, 17: 0.75}, -0.9, 0.15, {25: (0.4, 0.4), 7: (0.4, 0.5)}),
    Prototype("weariness", "sadness", {1: 0.6, 15: 0.7, 43: 0.6}, -0.5, -0.75, {4: (0.3, 0.35)}),
    Prototype("disappointment", "sadness", {15: 0.9, 17: 0.8, 1: 0.55}, -0.6, -0.3, {4: (0.5, 0.4), 14: (0.25, 0.4)}),
    Prototype("hostility", "anger", {4: 1.0, 5: 0.55, 7: 0.7, 23: 0.9}, -0.7, 0.65, {17: (0.4, 0.5)}),
    Prototype(
        "rage", "anger", {4: 1.0, 5: 0.65, 7: 0.6, 10: 0.7, 25: 0.9}, -0.85, 0.95, {26: (0.4, 0.5), 20: (0.3, 0.4)}
    ),
    Prototype("irritation", "anger", {4: 0.85, 7: 0.75, 23: 0.6}, -0.5, 0.35, {17: (0.3, 0.4), 10: (0.2, 0.3)}),
    Prototype(
        "resentment", "anger", {4: 0.9, 7: 0.5, 17: 0.65, 23: 0.75}, -0.6, 0.3, {14: (0.4, 0.5), 15: (0.2, 0.35)}
    ),
    Prototype("terror", "fear", {1: 1.0, 2: 0.7, 4: 0.6, 5: 1.0, 20: 0.95, 25: 0.8}, -0.9, 0.92, {26: (0.6, 0.5)}),
    Prototype("alarm", "fear", {1: 0.95, 2: 0.6, 4: 0.5, 5: 0.95, 20: 0.7, 25: 0.6}, -0.65, 0.85),
    Prototype("anxiety", "fear", {1: 0.9, 4: 0.6, 5: 0.7, 20: 0.8}, -0.6, 0.5, {2: (0.4, 0.4), 25: (0.4, 0.4)}),
    Prototype("astonishment", "surprise", {1: 1.0, 2: 1.0, 5: 0.85, 25: 0.8, 26: 0.95}, 0.15, 0.9),
    Prototype("wonder", "surprise", {1: 0.85, 2: 0.9, 5: 0.6, 25: 0.7, 26: 0.6}, 0.5, 0.6, {12: (0.5, 0.3)}),
    Prototype("bewilderment", "surprise", {1: 0.8, 2: 0.95, 5: 0.55, 25: 0.6, 26: 0.45}, -0.1, 0.5),
    Prototype("revulsion", "disgust", {9: 1.0, 10: 0.9, 4: 0.5, 7: 0.5}, -0.85, 0.5, {25: (0.6, 0.6), 17: (0.3, 0.5)}),
    Prototype("distaste", "disgust", {10: 0.95, 9: 0.55, 17: 0.5}, -0.6, 0.2, {15: (0.5, 0.5), 7: (0.4, 0.4)}),
    Prototype("aversion", "disgust", {9: 0.9, 7: 0.7, 4: 0.4, 10: 0.5}, -0.7, 0.35, {15: (0.6, 0.5), 43: (0.25, 0.8)}),
)


def prototypes_of(emotion: str) -> tuple[Prototype, ...]:
    return tuple(prototype for prototype in PROTOTYPES if prototype.emotion == emotion)


def sample_feeling(emotion: str, rng: np.random.Generator) -> Feeling:
    """Samples a prototype of `emotion`, its intensity, and the action units by which a face shows it."""
    family = prototypes_of(emotion)
    prototype = family[int(rng.integers(len(family)))]
    intensity = _intensity(emotion, rng)
    acting = _act(prototype, 1.0 if emotion == "neutral" else 0.25 + 0.75 * intensity, rng)
    valence, arousal = _affect(prototype, acting, intensity, rng)
    return Feeling(emotion, prototype.name, intensity, valence, arousal, acting)


def _intensity(emotion: str, rng: np.random.Generator) -> float:
    low, high = (0.0, 0.15) if emotion == "neutral" else (0.25, 1.0)
    return round(float(rng.uniform(low, high)), 2)


def _act(prototype: Prototype, force: float, rng: np.random.Generator) -> Actions:
    """Samples the action units of a prototype.

    The strength of each action unit is multiplied by `force`, and by a random factor with mean 1 and standard deviation
    0.14.
    """
    # An action unit that is weaker than VISIBLE after all factors is left out by `actions`.
    strength = dict(prototype.core)
    strength.update({unit: value for unit, (odds, value) in prototype.extra.items() if rng.random() < odds})
    spread = rng.normal(1.0, 0.14, len(strength))
    return actions(_settle({unit: w * force * s for (unit, w), s in zip(strength.items(), spread, strict=True)}))


def _settle(strength: dict[int, float]) -> dict[int, float]:
    """Changes the strengths in place, so that they are anatomically possible, and returns them.

    An eye that closes (AU 43) does not raise its upper lid (AU 5), and a dropped jaw (AU 26) parts the lips (AU 25).
    """
    if strength.get(43, 0.0) > 0.2:
        strength.pop(5, None)
    if 26 in strength:
        strength[25] = max(strength.get(25, 0.0), 0.6 * strength[26])
    return strength


def _affect(prototype: Prototype, acting: Actions, intensity: float, rng: np.random.Generator) -> tuple[float, float]:
    """Samples valence and arousal around the values of the prototype. A lower intensity scales these values down.

    Raised upper lids or a dropped jaw raise the arousal, and closed eyes lower it.
    """
    reach = 1.0 if prototype.emotion == "neutral" else 0.3 + 0.7 * intensity
    stir = 0.12 * acting[5] + 0.1 * acting[26] - 0.15 * acting[43]
    valence = prototype.valence * reach + rng.normal(0.0, 0.04)
    arousal = prototype.arousal * reach + stir + rng.normal(0.0, 0.04)
    return _unit(float(valence)), _unit(float(arousal))


def _unit(value: float) -> float:
    return round(min(max(value, -1.0), 1.0), 3)
