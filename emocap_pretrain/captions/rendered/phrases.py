"""Lists words for strengths, for actions, and for feelings.

The words do not depend on a face. `{how}` stands for an adverb of strength, `{also}` for that of a second action.
"""

from collections.abc import Mapping

Words = tuple[str, ...]

ADJECTIVES: Mapping[str, Words] = {
    "trace": ("barely visible", "minimal", "faint", "just perceptible"),
    "slight": ("slight", "mild", "light", "weak"),
    "moderate": ("moderate", "medium", "clear", "distinct"),
    "strong": ("strong", "pronounced", "marked", "considerable"),
    "extreme": ("extreme", "maximal", "full", "utmost"),
}
"""The adjectives of each band of an action; no adjective is used by two bands."""

LEVELS: Mapping[str, Words] = {
    "trace": ("trace", "minimal", "barely visible"),
    "slight": ("slight", "low", "mild"),
    "moderate": ("moderate", "medium", "middling"),
    "strong": ("strong", "high", "marked"),
    "extreme": ("extreme", "maximal", "full"),
}
"""The words for each band that fit into "at ... intensity"."""

DEGREE: Mapping[str, str] = {"trace": "low", "slight": "low", "moderate": "mid", "strong": "high", "extreme": "high"}
"""The degree, one of three, of each band; running text is coarser than the codes at its end."""

ADVERBS: Mapping[str, Words] = {
    "low": ("slightly", "faintly", "mildly", "subtly"),
    "mid": ("clearly", "noticeably", "visibly", "distinctly"),
    "high": ("strongly", "markedly", "powerfully", "considerably"),
}

DEEDS: Mapping[int, Words] = {
    1: ("inner brow raising", "lifting of the inner brows"),
    2: ("outer brow raising", "lifting of the outer brows"),
    4: ("brow lowering", "brow knitting"),
    5: ("upper lid raising", "lifting of the upper lids"),
    6: ("cheek raising", "lifting of the cheeks"),
    7: ("lid tightening", "tensing of the lids"),
    9: ("nose wrinkling", "wrinkling of the nose"),
    10: ("upper lip raising", "lifting of the upper lip"),
    12: ("lip corner pulling", "upward pulling of the lip corners"),
    14: ("dimpling", "tucking of the mouth corners"),
    15: ("lip corner lowering", "downward pulling of the lip corners"),
    17: ("chin raising", "pushing up of the chin"),
    20: ("lip stretching", "sideways stretching of the lips"),
    23: ("lip tightening", "tightening of the lips"),
    25: ("lip parting", "parting of the lips"),
    26: ("jaw dropping", "lowering of the jaw"),
    43: ("eye closing", "lowering of the upper lids"),
}
"""Nouns for the effect of each action unit; no noun is used by two units."""

CUES: tuple[tuple[tuple[int, ...], Words], ...] = (
    ((1, 2, 4), ("{how} raised but pinched brows", "{how} lifted brows that draw together")),
    ((1, 2), ("{how} raised eyebrows", "{how} arched brows", "{how} lifted brows")),
    ((1, 4), ("{how} slanted brows with raised inner ends", "{how} pinched and oblique brows")),
    ((1,), ("{how} raised inner brows", "{how} lifted inner ends of the brows")),
    ((2,), ("{how} raised outer brows", "{how} lifted outer ends of the brows")),
    ((4,), ("{how} lowered brows", "{how} knitted brows", "{how} furrowed brows")),
    ((5,), ("{how} widened eyes", "{how} raised upper lids")),
    ((7,), ("{how} tightened eyelids", "{how} tensed lids")),
    ((43,), ("{how} lowered upper lids", "{how} dropped eyelids")),
    ((6,), ("{how} raised cheeks", "{how} lifted cheeks")),
    ((9,), ("{how} wrinkled nose", "{how} crinkled nose")),
    ((10,), ("{how} raised upper lip", "{how} lifted upper lip")),
    ((12,), ("{how} upturned lip corners", "{how} smiling mouth")),
    ((14,), ("{how} dimpled mouth corners", "{how} tucked lip corners")),
    ((15,), ("{how} downturned lip corners", "{how} drooping mouth corners")),
    ((17,), ("{how} raised chin boss", "{how} bunched chin")),
    ((20,), ("{how} stretched lips", "{how} widened mouth line")),
    ((23,), ("{how} tightened lips", "{how} narrowed lips")),
    ((26,), ("{how} dropped jaw", "{how} lowered jaw")),
    ((25,), ("{how} parted lips", "{how} separated lips")),
)
"""Cues of the summary; the first that fits uses up its action units."""

STRENGTH: Mapping[str, Words] = {
    "low": ("mild", "slight", "subtle", "faint", "gentle"),
    "mid": ("moderate", "clear", "evident", "distinct", "definite"),
    "high": ("intense", "strong", "powerful", "vivid", "profound"),
}
"""The adjectives of each degree of an emotion."""

EMOTION_NOUNS: Mapping[str, Words] = {
    "neutral": ("neutrality",),
    "happiness": ("happiness", "joy"),
    "sadness": ("sadness",),
    "anger": ("anger",),
    "fear": ("fear",),
    "surprise": ("surprise",),
    "disgust": ("disgust",),
}

SHADES: Mapping[str, Words] = {
    "composure": ("calm", "composed", "impassive", "unmoved"),
    "attention": ("attentive", "watchful", "alert"),
    "ease": ("at ease", "relaxed", "unhurried"),
    "rest": ("restful", "peaceful", "quiet"),
    "joy": ("joy", "delight", "gladness", "cheerfulness"),
    "laughter": ("hilarity", "amusement", "mirth", "exuberance"),
    "contentment": ("contentment", "serenity", "quiet pleasure", "satisfaction"),
    "cordiality": ("friendliness", "polite pleasure", "cordiality", "warmth"),
    "pride": ("pride", "self-satisfaction", "smugness"),
    "sorrow": ("sorrow", "sadness", "unhappiness", "heartache"),
    "grief": ("grief", "anguish", "distress", "despair"),
    "weariness": ("weariness", "dejection", "listless sadness", "gloom"),
    "disappointment": ("disappointment", "regret", "hurt", "disheartenment"),
    "hostility": ("hostility", "anger", "contained fury", "menace"),
    "rage": ("rage", "fury", "open anger", "wrath"),
    "irritation": ("irritation", "annoyance", "impatience", "exasperation"),
    "resentment": ("resentment", "bitterness", "indignation", "sullen anger"),
    "terror": ("terror", "panic", "horror", "dread"),
    "alarm": ("alarm", "fright", "fear", "apprehension"),
    "anxiety": ("anxiety", "worry", "nervousness", "unease"),
    "astonishment": ("astonishment", "amazement", "shock", "stunned surprise"),
    "wonder": ("wonder", "marvelling surprise", "awe", "fascination"),
    "bewilderment": ("bewilderment", "puzzled surprise", "perplexity", "confusion"),
    "revulsion": ("revulsion", "disgust", "repulsion", "loathing"),
    "distaste": ("distaste", "disdain", "scornful dislike", "contemptuous disgust"),
    "aversion": ("aversion", "repugnance", "squeamishness", "dislike"),
}
"""Nouns of the feeling for the name of each prototype; adjectives for the neutral ones."""

GLOBALS: Words = (
    "The face shows {adjective} {noun}.",
    "This person appears to feel {adjective} {noun}.",
    "The overall expression is one of {adjective} {noun}.",
    "What the face conveys is {adjective} {noun}.",
    "The prevailing emotion is {adjective} {noun}, a form of {emotion}.",
    "The expression is one of {emotion}, {adjective} in degree, with a shade of {noun}.",
    "The face expresses {emotion} of {adjective} intensity, close to {noun}.",
    "There is {adjective} {noun} in this expression.",
)
NEUTRAL_GLOBALS: Words = (
    "The face is neutral and {noun}.",
    "The expression is neutral, {noun} and without clear emotion.",
    "This person appears {noun}, with a neutral expression.",
    "No particular emotion stands out; the face looks {noun} and neutral.",
    "The overall expression is {noun}, close to emotional neutrality.",
)
SUMMARIES: Words = (
    "Taken together, this is an expression of {adjective} {noun}, conveyed by {cues}, {affect}.",
    "The expression reads as {adjective} {noun} because of {cues}, {affect}.",
    "Judging by {cues}, the face expresses {emotion} of {adjective} intensity that comes close to {noun}, {affect}.",
    "In summary, {adjective} {noun} is visible in {cues}, and it amounts to {emotion}, {affect}.",
    "Overall, the emotion is {emotion}, best described as {adjective} {noun}, as seen from {cues}, {affect}.",
    "With {cues}, the person gives the impression of {adjective} {noun}, {affect}.",
)
STILL_SUMMARIES: Words = (
    "Overall the face is neutral and {noun}: brows, eyes, cheeks and mouth are all at rest, {affect}.",
    "In summary, the expression is neutral because no part of the face leaves its resting position, {affect}.",
    "Taken together, resting brows, relaxed lids and a quiet mouth make a neutral, {noun} expression, {affect}.",
)
NEUTRAL_SUMMARIES: Words = (
    "In spite of {cues}, the face as a whole stays neutral and {noun}, {affect}.",
    "Overall the expression is neutral, for {cues} alone do not amount to an emotion, {affect}.",
    "Taken together, nothing but {cues} departs from rest, so that the face looks neutral and {noun}, {affect}.",
)

PLEASURE: tuple[tuple[float, str], ...] = (
    (0.5, "very pleasant"),
    (0.15, "fairly pleasant"),
    (-0.15, "neither pleasant nor unpleasant"),
    (-0.5, "rather unpleasant"),
    (-1.0, "very unpleasant"),
)
"""The least valence, in [-1, 1], of each wording, highest first."""

ENERGY: tuple[tuple[float, str], ...] = (
    (0.5, "highly activated"),
    (0.15, "somewhat activated"),
    (-0.15, "of even activation"),
    (-0.5, "low in activation"),
    (-1.0, "very low in activation"),
)
"""The least arousal, in [-1, 1], of each wording, highest first."""
