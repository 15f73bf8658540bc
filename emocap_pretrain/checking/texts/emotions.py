"""Finds the emotions that a text names: their classes, how strong they are, and whether the text denies them.

`named_emotions` reads free English with the words of emotions.toml, and compares nothing. `agreement` compares the
emotions of two texts. The classes are those of FER+ (`captions/grammar/emotions.py`), which are also those of the
benchmarks. Emotions without a class, such as boredom, are compared by their valence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from emocap_pretrain.captions.grammar.recognition import area_of
from emocap_pretrain.checking.texts.phrases import compiled, read_toml

Valence = Literal["positive", "neutral", "negative"]
VALENCES: Mapping[str, Valence] = {
    "neutral": "neutral",
    "happiness": "positive",
    "surprise": "neutral",
    "sadness": "negative",
    "anger": "negative",
    "disgust": "negative",
    "fear": "negative",
    "contempt": "negative",
}
"""The valence of each class. Surprise can be pleasant or unpleasant."""

_WEIGHTS = {"hint": 0.3, "low": 0.6, "mid": 1.0, "high": 1.0}
_OPPOSITE_DEGREES = 0.5  # The agreement of a mild and an intense emotion of the same class.
_VALENCE_BESIDE = 0.3  # The weight of a valence in a text that also names an emotion.
_OTHER_OF_EQUAL_VALENCE = 0.6  # The agreement of boredom and sadness.
_REACH = 9  # Words between a denial and the emotion that it denies.
_NEAR = 120  # Characters before an emotion in which a denial is looked for.
_LIST = re.compile(
    r"\s*(?:,\s*)?(?:(?:or|nor|and|even)\s+)*(?:any\s+|a\s+|the\s+)?", re.IGNORECASE
)  # Between two items of a list.
_BEFORE = 3  # Words before an emotion that can say how strong it is.
_STEM = 5  # Letters that the forms of one word share.
_CLAUSE = re.compile(r"[,.;:!?]|\b(?:with|while|although|though|whereas|but|as)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedEmotion:
    """Describes one emotion that a text names.

    Attributes:
        words: The words of the text.
        classes: The classes that the words can mean; empty for an emotion without a class.
        valence: The valence of the words; None if their classes differ in it.
        degree: "hint" for an emotion that is mixed in, "low", "mid" or "high".
        denied: Whether the text says that the emotion is absent.
        is_valence: Whether the words name a valence and no emotion.
    """

    words: str
    classes: frozenset[str]
    valence: Valence | None
    degree: str
    denied: bool
    is_valence: bool = False

    @property
    def weight(self) -> float:
        """Returns how much of the text is about this emotion, in (0, 1]."""
        return _WEIGHTS[self.degree]


@dataclass(frozen=True, slots=True)
class _Meaning:
    """Holds the words of one row of emotions.toml. `section` is the table that has the row."""

    pattern: re.Pattern[str]
    section: str
    classes: frozenset[str]
    valence: Valence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lexicon:
    meanings: Sequence[_Meaning]
    false_friends: re.Pattern[str]
    being: re.Pattern[str]
    degrees: Mapping[str, re.Pattern[str]]
    denials: re.Pattern[str]
    direct_denials: re.Pattern[str]
    no_denials: re.Pattern[str]
    ends: re.Pattern[str]
    likeness: Mapping[frozenset[str], float]
    other_likeness: float


@cache
def _lexicon() -> _Lexicon:
    """Returns the words of emotions.toml as patterns."""
    table = read_toml("emotions.toml")
    meanings: list[_Meaning] = []
    for section in ("classes", "bodily", "adjectives"):
        for names, words in table[section].items():
            classes = frozenset(names.split())
            valences: set[Valence] = {VALENCES[name] for name in classes}
            meanings.append(_Meaning(compiled(words), section, classes, valences.pop() if len(valences) == 1 else None))
    for section in ("others", "valence"):
        meanings.extend(
            _Meaning(compiled(words), section, frozenset(), valence) for valence, words in table[section].items()
        )
    likeness = {frozenset(pair.split()): value for pair, value in table["likeness"].items() if pair != "other"}
    return _Lexicon(
        meanings=meanings,
        false_friends=compiled(table["but"]["words"]),
        being=re.compile(rf"(?:{compiled(table['being']['words']).pattern})[\s,]+$", re.IGNORECASE),
        degrees={
            **{name: compiled(table["intensity"][name]) for name in ("low", "high", "strong")},
            # At most two adjectives lie between such a phrase and its emotion.
            "hint": re.compile(
                rf"(?:{compiled(table['intensity']['hint']).pattern})(?:\s+[\w-]+){{0,2}}\s*$", re.IGNORECASE
            ),
        },
        denials=compiled(table["negation"]["before"]),
        direct_denials=re.compile(
            rf"(?:{compiled(table['negation']['direct']).pattern})(?:\s+\w+)?\s*$", re.IGNORECASE
        ),
        no_denials=compiled(table["negation"]["but"]),
        ends=compiled(table["negation"]["ends"]),
        likeness=likeness,
        other_likeness=table["likeness"]["other"],
    )


def named_emotions(text: str) -> tuple[NamedEmotion, ...]:
    """Returns the emotions that a text names, in the order of their words.

    >>> [(each.words, each.denied) for each in named_emotions("The person is not angry but sad.")]
    [('angry', True), ('sad', False)]
    """
    found: list[NamedEmotion] = []
    last = 0
    for match, meaning in _matches(text):
        between = text[last : match.start()]
        # A denial reaches over a whole list, such as "no sign of joy, sadness or anger".
        listed = bool(found) and found[-1].denied and _LIST.fullmatch(between) is not None
        found.append(
            NamedEmotion(
                words=match.group(),
                classes=meaning.classes,
                valence=meaning.valence,
                degree=_degree(match, between),
                denied=listed or _is_denied(text, match),
                is_valence=meaning.section == "valence",
            )
        )
        last = match.end()
    return tuple(found)


def _matches(text: str) -> Iterator[tuple[re.Match[str], _Meaning]]:
    """Yields the matches that do not overlap and are no false friends; of matches that overlap, the longest."""
    lexicon = _lexicon()
    friends = [match.span() for match in lexicon.false_friends.finditer(text)]
    matches = [
        (match, meaning)
        for meaning in lexicon.meanings
        for match in meaning.pattern.finditer(text)
        if not any(begin <= match.start() and match.end() <= end for begin, end in friends)
        and _counts(text, match, meaning)
    ]
    end = 0
    for match, meaning in sorted(matches, key=lambda pair: (pair[0].start(), -pair[0].end())):
        if match.start() >= end:
            end = match.end()
            yield match, meaning


def _counts(text: str, match: re.Match[str], meaning: _Meaning) -> bool:
    """Returns whether words that also have another meaning speak of an emotion at this place."""
    if meaning.section == "adjectives":
        return bool(_lexicon().being.search(_before(text, match)))
    if meaning.section != "bodily":
        return True
    before, after = _CLAUSE.split(_before(text, match))[-1], _CLAUSE.split(text[match.end() :], maxsplit=1)[0]
    return area_of(f"{before}{match.group()}{after}") is None


def _before(text: str, match: re.Match[str]) -> str:
    """Returns the text before a match, as far as it can say something of it."""
    return text[max(0, match.start() - _NEAR) : match.start()]


def _degree(match: re.Match[str], before: str) -> str:
    """Returns the degree of an emotion. `before` is the text between the emotion before it and this one."""
    degrees = _lexicon().degrees
    clause = re.split(r"[.;:!?]", before)[-1]
    if degrees["hint"].search(clause):
        return "hint"
    near = " ".join(clause.split()[-_BEFORE:])
    if degrees["high"].search(near) or degrees["strong"].fullmatch(match.group()):
        return "high"
    return "low" if degrees["low"].search(near) else "mid"


def _is_denied(text: str, match: re.Match[str]) -> bool:
    """Returns whether words before an emotion deny it: "without a trace of fear", "not angry, sad or tired"."""
    lexicon = _lexicon()
    before = _before(text, match)
    if lexicon.direct_denials.search(before):
        return True
    friends = [each.span() for each in lexicon.no_denials.finditer(before)]
    denials = [
        each
        for each in lexicon.denials.finditer(before)
        if not any(begin <= each.start() and each.end() <= end for begin, end in friends)
    ]
    return any(_reaches(before[each.end() :]) for each in denials[-2:])


def _reaches(between: str) -> bool:
    """Returns whether a denial reaches over the words `between` it and an emotion."""
    if len(between.split()) > _REACH or re.search(r"[,.;:!?]", between):
        return False
    return not _lexicon().ends.search(between)


def agreement(first: Sequence[NamedEmotion], second: Sequence[NamedEmotion]) -> float | None:
    """Returns how far two texts agree on the emotion, in [0, 1]; None if one of them names none.

    Equal classes agree, also if the words differ ("joy", "delighted"). A mild and an intense emotion of the same class
    agree by half, and opposite valences not at all. An emotion that is mixed in counts less than the others. An emotion
    that one text denies and the other one names is a contradiction.
    """
    here, there = ([each for each in found if not each.denied] for found in (first, second))
    denied = max(_denial(first, second), _denial(second, first))
    if not here or not there:
        return 1 - denied if denied else None
    return (1 - denied) * (_share(here, there) + _share(there, here)) / 2


def _denial(first: Sequence[NamedEmotion], second: Sequence[NamedEmotion]) -> float:
    """Returns the share of the emotions that `second` names and `first` denies, in [0, 1]."""
    affirmed = {name for each in first if not each.denied for name in each.classes}
    named = [each for each in second if not each.denied and not each.is_valence]
    denied = [
        each
        for each in named
        if not each.classes & affirmed
        # "Not furious, but annoyed" denies a degree and not the emotion.
        and any(
            no.classes & each.classes and (no.degree != "high" or each.degree == "high") for no in first if no.denied
        )
    ]
    return sum(each.weight for each in denied) / sum(each.weight for each in named) if denied else 0.0


def _share(first: Sequence[NamedEmotion], second: Sequence[NamedEmotion]) -> float:
    """Returns the weighted mean, over the emotions of `first`, of the agreement with the best match in `second`."""
    weights, others = _weights(first), _weights(second)
    total = sum(
        max(
            _likeness(each, other) * min(weight, other_weight)
            for other, other_weight in zip(second, others, strict=True)
        )
        for each, weight in zip(first, weights, strict=True)
    )
    return total / sum(weights)


def _weights(emotions: Sequence[NamedEmotion]) -> list[float]:
    """Returns the weights of emotions, of which the greatest is 1. A valence weighs little beside emotions."""
    most = max((each.weight for each in emotions if not each.is_valence), default=None)
    return [_VALENCE_BESIDE if each.is_valence and most else each.weight / (most or each.weight) for each in emotions]


def _likeness(one: NamedEmotion, other: NamedEmotion) -> float:
    """Returns how far two emotions agree, in [0, 1]."""
    if one.classes & other.classes:
        return _OPPOSITE_DEGREES if {one.degree, other.degree} == {"low", "high"} else 1.0
    if one.classes and other.classes:
        return max(_class_likeness(a, b) for a in one.classes for b in other.classes)
    if one.words.lower()[:_STEM] == other.words.lower()[:_STEM]:
        return 1.0
    if {one.valence, other.valence} == {"positive", "negative"}:
        return 0.0
    if one.valence is None or one.valence != other.valence:
        return _lexicon().other_likeness
    return 1.0 if one.is_valence or other.is_valence else _OTHER_OF_EQUAL_VALENCE


def _class_likeness(one: str, other: str) -> float:
    opposite = {VALENCES[one], VALENCES[other]} == {"positive", "negative"}
    lexicon = _lexicon()
    return lexicon.likeness.get(frozenset((one, other)), 0.0 if opposite else lexicon.other_likeness)
