"""Builds the sentences of a caption from the described state of a face.

The state of a face is a list of `RegionState`s and an `EmotionState`. Every choice among wordings depends only on the
key of the sample, so that a dataset that is packed twice has the same texts.

`local_sentence`, `global_sentence` and `summary` build the three parts of a caption. They do not depend on the kind of
face: the captions of rendered faces and of FER+ use the same functions and words (decision 31). The words are in
words.toml and looks.toml.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from emocap_pretrain.captions.grammar import emotions
from emocap_pretrain.captions.grammar.action_units import (
    ACTION_UNITS,
    ADJECTIVES,
    ADVERBS,
    BANDS,
    DEGREE_OF,
    LEVELS,
    Band,
    Degree,
)
from emocap_pretrain.captions.grammar.emotions import EmotionState
from emocap_pretrain.captions.grammar.looks import RegionState
from emocap_pretrain.captions.grammar.words import WORDS, Words

_Option = TypeVar("_Option")


@dataclass(frozen=True, slots=True)
class Wording:
    """Chooses among wordings by a hash of `key` and of a purpose, which is one or more texts that name the choice.

    The same key and purpose give the same choice on every machine. Because choices are hashes and not draws from a
    random generator, a further choice for a new sentence does not change the words of existing sentences (decision 31).
    """

    key: str

    def pick(self, options: Sequence[_Option], *purpose: str) -> _Option:
        return options[self.number(*purpose) % len(options)]

    def number(self, *purpose: str) -> int:
        """Returns an integer in [0, 2**64) that depends only on `key` and on `purpose`.

        Over all keys the integers are uniformly distributed. The integers for different purposes are independent.
        """
        return int.from_bytes(hashlib.blake2b("\0".join((self.key, *purpose)).encode(), digest_size=8).digest())


NO_MOVEMENT: Words = WORDS["phrases"]["no_movement"]
_UNIT_STYLES: Sequence[Words] = WORDS["phrases"]["unit_styles"]
_GLOBALS: Mapping[str, Words] = WORDS["globals"]
_SUMMARIES: Mapping[str, Words] = WORDS["summaries"]


def local_sentence(states: Sequence[RegionState], wording: Wording) -> str:
    """Returns one sentence that describes a region, and then lists its action units with their intensities.

    If the region has no active action unit, the sentence ends with words such as "with no visible movement". All
    `states` belong to the same region, which can have several states at once: the lips can be parted while their
    corners are raised.
    """
    clauses = [_with_adverbs(wording.pick(state.clauses(), *_purpose(state)), state, wording) for state in states]
    units = [pair for state in states for pair in zip(state.look.units, state.bands, strict=True)]
    region = states[0].region
    no_movement = wording.pick(NO_MOVEMENT, region, "no movement")
    ending = _action_units(units, region, wording) if units else f", {no_movement}"
    return f"{_capitalized(_joined(clauses))}{ending}."


def _purpose(state: RegionState) -> tuple[str, ...]:
    """Returns the region and the action units of a state as texts.

    Callers pass these texts to `Wording.pick` as the beginning of `purpose`. So the choices are independent for states
    of different regions, and for states with different action units.
    """
    return state.region, *map(str, state.look.units)


def _with_adverbs(phrase: str, state: RegionState, wording: Wording) -> str:
    """Replaces `{how}` and `{also}` in a phrase by adverbs of intensity.

    `{how}` is for the first action unit of the state, and `{also}` for the last one.
    """
    if state.at_rest:
        return phrase
    how, also = (
        wording.pick(ADVERBS[DEGREE_OF[band]], *_purpose(state), name)
        for band, name in ((state.bands[0], "how"), (state.bands[-1], "also"))
    )
    return phrase.format(how=how, also=also)


def _joined(clauses: Sequence[str]) -> str:
    """Joins clauses. Those with the same subject become one clause, such as "the lips are parted and stretched"."""
    # A clause is cut after its first "is" or "are". A clause without these words is a subject of its own.
    predicates: dict[str, list[str]] = {}
    for clause in clauses:
        match = re.fullmatch(r"(.+? (?:is|are)) (.+)", clause)
        subject, predicate = match.groups() if match else (clause, "")
        predicates.setdefault(subject, []).append(predicate)
    parts = [f"{subject} {listed(found)}".rstrip() for subject, found in predicates.items()]
    return " while ".join(part for part in (listed(parts[:-1]), parts[-1]) if part)


def _action_units(units: Sequence[tuple[int, Band]], region: str, wording: Wording) -> str:
    """Returns a text that lists the action units with their intensities, such as " (AU12 at slight intensity)".

    `wording` chooses one of several styles for the whole list. `region` is the region of the face to which the units
    belong; the choices of different regions are independent.
    """
    opening, style, closing = wording.pick(_UNIT_STYLES, region, "style")
    described = [
        style.format(
            unit=unit,
            name=ACTION_UNITS[unit].name,
            movement=ACTION_UNITS[unit].movement,
            level=wording.pick(LEVELS[band], region, str(unit), "level"),
            adjective=wording.pick(ADJECTIVES[band], region, str(unit), "adjective"),
        )
        for unit, band in units
    ]
    return f"{opening}{listed(described)}{closing}"


def global_sentence(emotion: EmotionState, wording: Wording) -> str:
    """Returns one sentence about the emotion, its degree and its nuance. The sentence names no part of the face."""
    # An even mixture of two emotions has sentences of its own, which name both.
    if emotion.even and "neutral" not in {emotion.name, emotion.second}:
        blend = emotions.BLENDS.get(frozenset({emotion.name, emotion.second}), "")
        frame = wording.pick(_GLOBALS["blended" if blend else "mixed"], "global")
        return frame.format(blend=blend, first=emotion.name, second=emotion.second)
    # Frames with {looking} fit any emotion. Those with {feeling} need a noun, so they do not fit "neutral". Without a
    # known shade only the first two of the latter are used.
    if emotion.ambiguous:
        frames = _GLOBALS["ambiguous"]
    elif emotion.name == "neutral":
        frames = (*_GLOBALS["looking"], *_GLOBALS["neutral"], *(() if emotion.second else _GLOBALS["no_emotion"]))
    else:
        frames = _GLOBALS["feeling"] if emotion.shade else (*_GLOBALS["looking"], *_GLOBALS["feeling"][:2])
    frame = wording.pick(frames, "global")
    if "{looking}" in frame:
        return frame.format(looking=_looking(emotion, wording, "global"))
    return frame.format(feeling=_feeling(emotion, wording, "global"))


def _looking(emotion: EmotionState, wording: Wording, part: str) -> str:
    """Returns the emotion as words that fit after "the person looks".

    `part` is the part of the caption, "global" or "summary". Each part has its own choice of words.
    """
    if emotion.name == "neutral":
        words = f"neutral and {wording.pick(emotions.SHADES[emotion.shade or 'composure'], part, 'shade')}"
    else:
        words = wording.pick(emotions.FEELS[emotion.name][emotion.degree], part, "feels")
    if not emotion.second:
        return words
    if emotion.second == "neutral":
        close = emotion.degree is Degree.LOW
        touches = ("close to neutral", "not far from neutral") if close else ("in a restrained way",)
    else:
        touches = (f"with a touch of {emotion.second}", f"with a hint of {emotions.HINTS[emotion.second]}")
    return f"{words}, {wording.pick(touches, part, 'touch')}"


def _feeling(emotion: EmotionState, wording: Wording, part: str) -> str:
    """Returns an emotion other than neutral as a noun phrase with its degree.

    `part` is the part of the caption, "global" or "summary". Each part has its own choice of words.
    """
    named = f"{wording.pick(emotions.DEGREES[emotion.degree], part, 'degree')} {emotion.name}"
    if emotion.shade:
        noun = wording.pick(emotions.SHADES[emotion.shade], part, "shade")
        if wording.pick((True, False), part, "name"):
            return f"{named} {'with a hint of' if emotion.degree is Degree.LOW else 'in the form of'} {noun}"
        phrases = emotions.LOW_SHADES
        if emotion.degree is not Degree.LOW:
            phrases = tuple(f"{adjective} {{noun}}" for adjective in emotions.DEGREES[emotion.degree])
        return wording.pick(phrases, part, "degree").format(noun=noun)
    if emotion.second == "neutral":
        return f"{named} close to neutral" if emotion.degree is Degree.LOW else named
    if not emotion.second:
        return named
    return f"{named} {'mixed with' if emotion.even else 'with some'} {emotion.second}"


def summary(emotion: EmotionState, states: Sequence[RegionState], wording: Wording) -> str:
    """Returns one sentence that names the emotion and the visible cues of `states`, the strongest cue first.

    If valence and arousal are known, the sentence names them too.
    """
    cues = _cues(states, wording)
    regions = [state.region for state in states if state.at_rest]
    if emotion.name != "neutral":
        frames = _SUMMARIES["feeling" if cues else "feeling_without_cues"]
        words = {"feeling": _feeling(emotion, wording, "summary")}
    else:
        still = "resting" if regions else "neutral_without_cues"
        frames = _SUMMARIES["neutral" if cues else still]
        words = {"looking": _looking(emotion, wording, "summary"), "regions": listed(regions)}
    return wording.pick(frames, "summary").format(**words, cues=listed(cues), affect=_affect(emotion, wording))


def summary_without_emotion(states: Sequence[RegionState], wording: Wording) -> str:
    """Returns one sentence that lists the visible cues of `states`, such as raised eyebrows, and names no emotion."""
    cues = _cues(states, wording)
    return f"A face with {listed(cues)}." if cues else "A face."


def _cues(states: Sequence[RegionState], wording: Wording) -> list[str]:
    """Returns a noun phrase for each state, the strongest state first. States without noun phrases are left out."""
    named = [state for state in states if state.cues()]
    named.sort(key=lambda state: -BANDS.index(state.bands[0]))  # The sort is stable, so equal states keep their order.
    return [_with_adverbs(wording.pick(state.cues(), *_purpose(state), "cue"), state, wording) for state in named]


def _affect(emotion: EmotionState, wording: Wording) -> str:
    if emotion.affect is None:
        return ""
    # `LEAST` ends with -1, so each value has a step.
    valence, arousal = (
        next(step for step, least in enumerate(emotions.LEAST) if value >= least) for value in emotion.affect
    )
    steps = {"valence": valence, "pleasure": valence, "arousal": arousal}
    frame = wording.pick(_SUMMARIES["affect"], "affect")
    return frame.format(**{scale: emotions.AFFECT[scale][step] for scale, step in steps.items()})


def listed(parts: Sequence[str]) -> str:
    """Joins the parts with commas, and the last two with "and".

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
