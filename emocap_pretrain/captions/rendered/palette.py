"""Defines the colours of skin, hair, eyes, clothes and background, as sRGB triples with channels in [0, 1]."""

import colorsys

import numpy as np

Colour = tuple[float, float, float]

BLACK: Colour = (0.06, 0.05, 0.06)
WHITE: Colour = (1.0, 1.0, 1.0)

_SKIN: tuple[Colour, ...] = (
    (0.98, 0.87, 0.79),
    (0.96, 0.80, 0.69),
    (0.91, 0.73, 0.58),
    (0.84, 0.63, 0.47),
    (0.74, 0.53, 0.37),
    (0.60, 0.41, 0.28),
    (0.47, 0.31, 0.22),
)
_HAIR: tuple[Colour, ...] = (
    (0.11, 0.09, 0.09),
    (0.16, 0.12, 0.10),
    (0.26, 0.17, 0.12),
    (0.40, 0.26, 0.16),
    (0.50, 0.28, 0.16),
    (0.62, 0.33, 0.17),
    (0.74, 0.57, 0.34),
    (0.88, 0.74, 0.50),
)
_DYED: tuple[Colour, ...] = ((0.33, 0.36, 0.62), (0.72, 0.36, 0.50), (0.24, 0.49, 0.50))
_IRIS: tuple[Colour, ...] = (
    (0.24, 0.14, 0.08),
    (0.36, 0.22, 0.12),
    (0.47, 0.36, 0.16),
    (0.33, 0.45, 0.28),
    (0.28, 0.47, 0.66),
    (0.45, 0.54, 0.60),
)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Returns a blend of two colours; a `share` of 0 gives `one`, and a `share` of 1 gives `other`."""
    return (
        one[0] + (other[0] - one[0]) * share,
        one[1] + (other[1] - one[1]) * share,
        one[2] + (other[2] - one[2]) * share,
    )


def scale(colour: Colour, red: float, green: float, blue: float) -> Colour:
    return min(colour[0] * red, 1.0), min(colour[1] * green, 1.0), min(colour[2] * blue, 1.0)


def darker(colour: Colour, share: float) -> Colour:
    return mix(colour, BLACK, share)


def lighter(colour: Colour, share: float) -> Colour:
    return mix(colour, WHITE, share)


def shadow(skin: Colour) -> Colour:
    """Returns the colour of skin in the shade: darker and warmer, never grey."""
    return scale(skin, 0.66, 0.53, 0.50)


def fold(skin: Colour) -> Colour:
    """Returns the colour at the bottom of a crease in skin."""
    return scale(skin, 0.48, 0.34, 0.32)


def brow(hair_colour: Colour, skin_colour: Colour) -> Colour:
    """Returns the colour of the eyebrows and the beard, which is dark enough to contrast with the skin."""
    ink = mix(darker(hair_colour, 0.35), fold(skin_colour), 0.3)
    glare = sum(ink) / (0.5 * sum(skin_colour))
    return ink if glare <= 1 else scale(ink, 1 / glare, 1 / glare, 1 / glare)


def skin(depth: float, warmth: float) -> Colour:
    """Returns a colour of skin.

    Args:
        depth: Position in [0, 1] on a scale from light to dark.
        warmth: Tint in [-1, 1] from cool to warm.
    """
    place = depth * (len(_SKIN) - 1)
    low = min(int(place), len(_SKIN) - 2)
    return scale(mix(_SKIN[low], _SKIN[low + 1], place - low), 1.0, 1.0, 1.0 - 0.05 * warmth)


def hair(rng: np.random.Generator, age: float) -> Colour:
    """Samples a colour of hair. It is greyer for a higher `age` in [0, 1]. One person in twenty has dyed hair."""
    if rng.random() < 0.05:
        return _choose(rng, _DYED)
    grey = float(np.clip((age - 0.45 + rng.normal(0.0, 0.12)) * 2.2, 0.0, 0.95))
    return mix(_choose(rng, _HAIR), (0.80, 0.80, 0.82), grey)


def iris(rng: np.random.Generator) -> Colour:
    return _choose(rng, _IRIS)


def lip(skin_colour: Colour, rose: float, *, made_up: bool) -> Colour:
    """Returns the colour of the lips.

    Args:
        skin_colour: The skin around the lips.
        rose: Redness of natural lips, or the shade of the lipstick, in [0, 1].
        made_up: Whether the lips have lipstick, so that the colour does not depend on the skin.
    """
    if made_up:
        return mix((0.76, 0.22, 0.28), (0.70, 0.32, 0.38), rose)
    return mix(scale(skin_colour, 0.86, 0.60, 0.58), (0.76, 0.36, 0.36), 0.2 + 0.3 * rose)


def cloth(rng: np.random.Generator) -> Colour:
    return _hued(rng, (0.15, 0.5), (0.3, 0.85))


def backdrop(rng: np.random.Generator) -> Colour:
    return _hued(rng, (0.05, 0.28), (0.5, 0.95))


def _hued(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    return colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(*saturation)), float(rng.uniform(*value)))


def _choose(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]
