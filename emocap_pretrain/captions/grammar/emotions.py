"""Defines the words for emotions: names, adjectives, degrees, nuances and mixtures.

`EmotionState` describes the emotion of a face; a captioner (a module that writes captions) creates it. The tables below
hold the words of words.toml, whose comments explain the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from emocap_pretrain.captions.grammar.action_units import Degree
from emocap_pretrain.captions.grammar.words import WORDS, Words

# The names of FER+, which are also labels of its dataset. Rendered faces have all of them except contempt.
EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionState:
    """Describes the emotion of a face for which a caption is written.

    Attributes:
        name: One of `EMOTIONS`.
        degree: How strong the emotion is. It has no effect if `name` is "neutral".
        shade: The nuance of the emotion, such as "joy" for happiness (a key of `SHADES`); "" if it is not known.
        second: Another emotion that is mixed in, or "".
        even: Whether `second` is about as visible as the first emotion.
        ambiguous: Whether some observers could not read the face.
        affect: Valence and arousal, each in [-1, 1], or None if they are not known.
    """

    name: str
    degree: Degree = Degree.MID
    shade: str = ""
    second: str = ""
    even: bool = False
    ambiguous: bool = False
    affect: tuple[float, float] | None = None


DEGREES: Mapping[Degree, Words] = WORDS["degrees"]
FEELS: Mapping[str, Mapping[Degree, Words]] = WORDS["feels"]
SHADES: Mapping[str, Words] = WORDS["shades"]
LOW_SHADES: Words = WORDS["phrases"]["low_shades"]
HINTS: Mapping[str, str] = WORDS["hints"]
BLENDS: Mapping[frozenset[str], str] = {frozenset(pair.split()): noun for pair, noun in WORDS["blends"].items()}
AFFECT: Mapping[str, Words] = WORDS["affect"]

LEAST = (0.5, 0.15, -0.15, -0.5, -1.0)
"""The least valence or arousal, in [-1, 1], for each word of the lists of `AFFECT`."""
