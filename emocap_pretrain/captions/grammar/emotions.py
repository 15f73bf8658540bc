"""Defines the words for emotions: names, adjectives, degrees, nuances and mixtures."""

from collections.abc import Mapping
from dataclasses import dataclass

from emocap_pretrain.captions.grammar.action_units import Degree, Words

EMOTIONS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionState:
    """Describes the emotion of a face for which a caption is written.

    Attributes:
        name: One of `EMOTIONS`.
        degree: How strong the emotion is. It has no effect if `name` is "neutral".
        shade: A key of `SHADES` that belongs to the emotion, or "" if the shade is not known.
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


DEGREES: Mapping[Degree, Words] = {
    Degree.LOW: ("mild", "slight", "faint", "subtle"),
    Degree.MID: ("moderate", "clear", "evident", "distinct", "definite"),
    Degree.HIGH: ("strong", "intense", "great", "pronounced"),
}
"""Adjectives that fit before the name of an emotion."""

LOW_SHADES: Words = ("a hint of {noun}", "a touch of {noun}", "a trace of {noun}")
"""Phrases for a nuance at low degree; "slight" would contradict a noun as strong as "rage"."""

FEELS: Mapping[str, Mapping[Degree, Words]] = {
    "happiness": {
        Degree.LOW: ("slightly happy", "mildly pleased", "slightly amused"),
        Degree.MID: ("happy", "cheerful", "pleased"),
        Degree.HIGH: ("clearly happy", "very happy", "joyful", "delighted"),
    },
    "surprise": {
        Degree.LOW: ("slightly surprised", "a little puzzled"),
        Degree.MID: ("surprised", "taken aback"),
        Degree.HIGH: ("clearly surprised", "astonished", "amazed"),
    },
    "sadness": {
        Degree.LOW: ("slightly sad", "a little downcast", "a little wistful"),
        Degree.MID: ("sad", "unhappy", "gloomy"),
        Degree.HIGH: ("deeply sad", "very sad", "sorrowful"),
    },
    "anger": {
        Degree.LOW: ("slightly annoyed", "slightly irritated"),
        Degree.MID: ("angry", "annoyed", "displeased"),
        Degree.HIGH: ("very angry", "furious", "openly hostile"),
    },
    "disgust": {
        Degree.LOW: ("slightly disgusted", "a little put off"),
        Degree.MID: ("disgusted", "repelled"),
        Degree.HIGH: ("deeply disgusted", "revolted"),
    },
    "fear": {
        Degree.LOW: ("slightly uneasy", "a little worried"),
        Degree.MID: ("afraid", "anxious"),
        Degree.HIGH: ("terrified", "very frightened"),
    },
    "contempt": {
        Degree.LOW: ("slightly contemptuous", "a little disdainful"),
        Degree.MID: ("contemptuous", "scornful"),
        Degree.HIGH: ("openly contemptuous", "very scornful"),
    },
}
"""Adjectives that fit after "the person looks"."""

SHADES: Mapping[str, Words] = {
    "composure": ("calm", "composed", "impassive", "expressionless"),
    "attention": ("attentive", "watchful", "alert", "observant"),
    "ease": ("relaxed", "unhurried", "untroubled", "unconcerned"),
    "rest": ("restful", "peaceful", "quiet", "tranquil"),
    "joy": ("joy", "delight", "elation", "enjoyment"),
    "laughter": ("amusement", "mirth", "hilarity", "merriment"),
    "contentment": ("contentment", "satisfaction", "serenity", "well-being"),
    "cordiality": ("friendliness", "warmth", "cordiality", "goodwill"),
    "pride": ("pride", "self-satisfaction", "smugness", "confidence"),
    "sorrow": ("sorrow", "unhappiness", "heartache", "misery"),
    "grief": ("grief", "anguish", "despair", "distress"),
    "weariness": ("weariness", "dejection", "gloom", "listlessness"),
    "disappointment": ("disappointment", "regret", "discouragement", "disillusionment"),
    "hostility": ("hostility", "animosity", "antagonism", "aggression"),
    "rage": ("rage", "fury", "wrath", "outrage"),
    "irritation": ("irritation", "annoyance", "impatience", "exasperation"),
    "resentment": ("resentment", "bitterness", "indignation", "displeasure"),
    "terror": ("terror", "panic", "horror", "dread"),
    "alarm": ("alarm", "fright", "apprehension", "dismay"),
    "anxiety": ("anxiety", "worry", "nervousness", "agitation"),
    "astonishment": ("astonishment", "amazement", "shock", "disbelief"),
    "wonder": ("wonder", "awe", "fascination", "admiration"),
    "bewilderment": ("bewilderment", "puzzlement", "confusion", "perplexity"),
    "revulsion": ("revulsion", "repulsion", "loathing", "abhorrence"),
    "distaste": ("distaste", "disdain", "scorn", "disapproval"),
    "aversion": ("aversion", "repugnance", "dislike", "antipathy"),
}
"""Nouns for each nuance of an emotion; the first four nuances belong to "neutral" and have adjectives."""

HINTS: Mapping[str, str] = {
    "happiness": "amusement",
    "surprise": "astonishment",
    "sadness": "melancholy",
    "anger": "irritation",
    "disgust": "aversion",
    "fear": "unease",
    "contempt": "disdain",
}
"""A milder noun for each emotion, which fits after "with a hint of"."""

BLENDS: Mapping[frozenset[str], str] = {
    frozenset({"happiness", "surprise"}): "pleasant surprise",
    frozenset({"happiness", "contempt"}): "smug satisfaction",
    frozenset({"surprise", "fear"}): "alarm",
    frozenset({"surprise", "anger"}): "outrage",
    frozenset({"sadness", "fear"}): "anxious distress",
    frozenset({"sadness", "anger"}): "bitterness",
    frozenset({"sadness", "disgust"}): "pained aversion",
    frozenset({"anger", "disgust"}): "indignant revulsion",
    frozenset({"anger", "contempt"}): "scornful anger",
    frozenset({"anger", "fear"}): "agitation",
    frozenset({"disgust", "contempt"}): "scornful distaste",
}
"""The noun for an even mixture of two emotions, where there is one."""

LEAST = (0.5, 0.15, -0.15, -0.5, -1.0)
"""The least valence or arousal, in [-1, 1], for each word of the following lists."""

VALENCE: Words = ("very positive", "fairly positive", "balanced", "fairly negative", "very negative")
PLEASURE: Words = (
    "very pleasant",
    "fairly pleasant",
    "neither pleasant nor unpleasant",
    "fairly unpleasant",
    "very unpleasant",
)
AROUSAL: Words = ("very high", "fairly high", "medium", "fairly low", "very low")
