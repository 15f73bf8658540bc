"""Ten people's votes on one face -> its emotion label, a global sentence, and a summary.

The share of the first emotion, of the second and of "neutral" becomes the wording of intensity and mixture. The label
follows the majority rule of FER+: single votes are dropped as outliers, and more than half of the rest must agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from emocap_pretrain.captions.wording import listed, pick

EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
_UNSURE = ("unknown", "NF")
Votes = Mapping[str, int]


class Level(StrEnum):
    """The intensity of the first emotion."""

    FAINT = "faint"
    MODERATE = "moderate"
    STRONG = "strong"


@dataclass(frozen=True, slots=True)
class Mixture:
    """The result of the votes: a first emotion at some level, and a second one, which may be neutral or none ("").

    `even` is True where the second is about as frequent, `ambiguous` where some people could not tell.
    """

    first: str
    second: str
    level: Level
    even: bool
    ambiguous: bool


def without_outliers(votes: Votes) -> dict[str, int]:
    """The votes without those that one person alone gave.

    Raises:
        ValueError: If a name of a vote is unknown here, or one of the emotions is missing.
    """
    if set(votes) != {*EMOTIONS, *_UNSURE}:
        raise ValueError(
            f"votes for {', '.join(sorted(votes))}, but the names are {', '.join((*EMOTIONS, *_UNSURE))}; "
            "map them by name."
        )
    return {name: count if count > 1 else 0 for name, count in votes.items()}


def majority(votes: Votes) -> str:
    """The emotion that more than half of the votes name, outliers dropped; "" if there is none."""
    kept = without_outliers(votes)
    name = max(kept, key=lambda name: kept[name])
    return name if name in EMOTIONS and 2 * kept[name] > sum(kept.values()) else ""


def is_face(votes: Votes) -> bool:
    """Returns whether the emotions outnumber the votes for "unknown" and "no face"."""
    kept = without_outliers(votes)
    return max(kept[name] for name in EMOTIONS) > sum(kept[name] for name in _UNSURE)


def mixture(votes: Votes, *, expressive: bool = True) -> Mixture:
    """Reads the votes. `expressive` is False where nothing strong was measured on the face: then no level is strong.

    Ties go to the emotion before neutral, then to the order of `EMOTIONS`.
    """
    kept = without_outliers(votes)
    first, second = sorted((*EMOTIONS[1:], "neutral"), key=lambda name: -kept[name])[:2]
    total = sum(kept[name] for name in EMOTIONS)
    share, neutral_share = kept[first] / total, kept["neutral"] / total
    if first == "neutral" or (share >= 0.8 and expressive):
        level = Level.STRONG
    elif neutral_share >= 0.35 or share < 0.45:
        level = Level.FAINT
    else:
        level = Level.MODERATE
    # What a few people add to a clear emotion is not seen on the face.
    second = second if kept[second] and (first == "neutral" or level is not Level.STRONG) else ""
    even = bool(second) and 4 * kept[second] >= 3 * kept[first]
    return Mixture(first, second, level, even=even, ambiguous=votes["unknown"] >= 2)


_ADJECTIVES: Mapping[str, Mapping[Level, tuple[str, ...]]] = {
    "happiness": {
        Level.FAINT: ("faintly pleased", "mildly content", "slightly amused"),
        Level.MODERATE: ("happy", "cheerful", "pleased"),
        Level.STRONG: ("clearly happy", "joyful", "delighted", "unmistakably cheerful"),
    },
    "surprise": {
        Level.FAINT: ("slightly surprised", "faintly puzzled"),
        Level.MODERATE: ("surprised", "taken aback"),
        Level.STRONG: ("astonished", "clearly surprised", "amazed"),
    },
    "sadness": {
        Level.FAINT: ("faintly sad", "a little downcast", "slightly wistful"),
        Level.MODERATE: ("sad", "downcast", "gloomy"),
        Level.STRONG: ("deeply sad", "clearly sorrowful", "unhappy and distressed"),
    },
    "anger": {
        Level.FAINT: ("slightly annoyed", "faintly irritated"),
        Level.MODERATE: ("angry", "irritated", "displeased"),
        Level.STRONG: ("clearly angry", "furious", "openly hostile"),
    },
    "disgust": {
        Level.FAINT: ("slightly put off", "faintly disgusted"),
        Level.MODERATE: ("disgusted", "repelled"),
        Level.STRONG: ("strongly disgusted", "revolted"),
    },
    "fear": {
        Level.FAINT: ("slightly uneasy", "faintly worried"),
        Level.MODERATE: ("afraid", "anxious"),
        Level.STRONG: ("terrified", "clearly frightened"),
    },
    "contempt": {
        Level.FAINT: ("slightly doubtful", "faintly disdainful"),
        Level.MODERATE: ("contemptuous", "scornful"),
        Level.STRONG: ("openly contemptuous", "clearly scornful"),
    },
}
_NEUTRAL = ("neutral", "calm and neutral", "expressionless", "composed, neutral")
_TOUCHES: Mapping[str, tuple[str, ...]] = {
    "neutral": ("in a restrained way", "without much intensity"),
    "happiness": ("with a touch of happiness", "with a hint of amusement"),
    "surprise": ("with a touch of surprise", "with a hint of astonishment"),
    "sadness": ("with a touch of sadness", "with a hint of melancholy"),
    "anger": ("with a touch of anger", "with a hint of irritation"),
    "disgust": ("with a touch of disgust", "with a hint of aversion"),
    "fear": ("with a touch of fear", "with a hint of unease"),
    "contempt": ("with a touch of contempt", "with a hint of disdain"),
}
_NEAR_NEUTRAL = ("close to neutral", "not far from neutral")
_BLENDS: Mapping[frozenset[str], str] = {
    frozenset({"happiness", "surprise"}): "pleasant surprise",
    frozenset({"happiness", "contempt"}): "smug satisfaction",
    frozenset({"surprise", "fear"}): "alarm",
    frozenset({"surprise", "anger"}): "outrage",
    frozenset({"sadness", "fear"}): "anxious distress",
    frozenset({"sadness", "anger"}): "bitter displeasure",
    frozenset({"sadness", "disgust"}): "pained aversion",
    frozenset({"anger", "disgust"}): "indignant revulsion",
    frozenset({"anger", "contempt"}): "scornful anger",
    frozenset({"anger", "fear"}): "threatened agitation",
    frozenset({"disgust", "contempt"}): "scornful distaste",
}


_DEGREES: Mapping[Level, tuple[str, ...]] = {
    Level.FAINT: ("faint", "subdued", "slight"),
    Level.MODERATE: ("moderate", "evident"),
    Level.STRONG: ("strong", "intense"),
}


def feeling(mix: Mixture, key: str) -> str:
    """The emotion as words that follow "the face looks", without cues."""
    if mix.first == "neutral":
        words = pick(_NEUTRAL, key, "first")
    else:
        words = pick(_ADJECTIVES[mix.first][mix.level], key, "first")
    if not mix.second:
        return words
    near_neutral = mix.second == "neutral" and mix.level is Level.FAINT
    touches = _NEAR_NEUTRAL if near_neutral else _TOUCHES[mix.second]
    return f"{words}, {pick(touches, key, 'second')}"


def whole(mix: Mixture, key: str) -> str:
    """One sentence: intensity and nuanced emotion, no cues."""
    words = feeling(mix, key)
    if mix.even and "neutral" not in {mix.first, mix.second}:
        frames = _blended(mix)
    elif mix.ambiguous:
        frames = (
            f"The expression is hard to read, but the face looks {words}.",
            f"An ambiguous face, perhaps {words}.",
        )
    else:
        frames = (f"The person looks {words}.", f"The face appears {words}.", f"A face that looks {words}.")
    return pick(frames, key, "frame")


def _blended(mix: Mixture) -> tuple[str, ...]:
    names = f"{mix.first} and {mix.second}"
    blend = _BLENDS.get(frozenset({mix.first, mix.second}))
    if blend is None:
        return (f"A face between {names}.", f"The expression mixes {names}.")
    return (f"A face of {blend}, between {names}.", f"The expression blends {names} into {blend}.")


def summary(mix: Mixture, cues: Sequence[str], key: str) -> str:
    """One sentence: the emotion, and the phrases of the cues that decide it; without cues, the emotion alone."""
    emotion = _named(mix, key)
    if not cues:
        return pick((f"Overall the face shows {emotion}.", f"The face conveys {emotion}."), key, "summary")
    frames = (
        f"Overall the face shows {emotion}, seen in {listed(cues)}.",
        f"With {listed(cues)}, the face conveys {emotion}.",
        f"{listed(cues).capitalize()} together express {emotion}."
        if len(cues) > 1
        else f"The face expresses {emotion} through {listed(cues)}.",
    )
    return pick(frames, key, "summary")


def _named(mix: Mixture, key: str) -> str:
    """The emotion as nouns, with its degree."""
    if mix.first == "neutral":
        return "a neutral state" + (f" with some {mix.second}" if mix.second else "")
    degree = pick(_DEGREES[mix.level], key, "degree")
    if mix.second == "neutral":
        return f"{degree} {mix.first}" + (" close to neutral" if mix.level is Level.FAINT else "")
    if not mix.second:
        return f"{degree} {mix.first}"
    return f"{degree} {mix.first} " + ("mixed with " if mix.even else "with some ") + mix.second
