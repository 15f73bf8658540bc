"""Finds placeholders, remains of formats, texts that break off, and words that repeat without end.

The patterns of placeholders and remains are in form.toml.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from emocap_pretrain.checking.texts.phrases import FaultCategory, PhraseCheck, read_toml

_END = re.compile(r"[.!?\u3002\uff01\uff1f\u061f\u0964\u2026][\"'\u201d\u2019\u00bb)\]*]*\s*$")
_WORDS = re.compile(r"\w+(?:['\u2019]\w+)*")
_MOST_IN_A_ROW = 2  # "A very, very broad smile" is no loop.
_LONGEST_LOOP = 12  # Words.


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternCategory:
    """Holds the patterns of one category of form.toml. It is a `FaultCategory`."""

    name: str
    says: str
    score: float
    patterns: tuple[re.Pattern[str], ...]

    def found(self, text: str) -> tuple[str, ...]:
        """Returns the first match of each pattern."""
        return tuple(match.group() for pattern in self.patterns if (match := pattern.search(text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """Finds a text whose last sentence has no end, because a limit of tokens has cut it. It is a `FaultCategory`."""

    name: str = "unfinished"
    says: str = "ends without a full stop"
    score: float = 0.3

    def found(self, text: str) -> tuple[str, ...]:
        """Returns the last two words of a text without an end."""
        words = text.split()
        return () if _END.search(text) or not words else (" ".join(words[-2:]),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Finds words that a text says more than twice in a row, as language models do. It is a `FaultCategory`."""

    name: str = "loop"
    says: str = "repeats words without end"
    score: float = 0.0

    def found(self, text: str) -> tuple[str, ...]:
        """Returns the words of the first loop."""
        words = _WORDS.findall(text.lower())
        for length in range(1, _LONGEST_LOOP + 1):
            # The number of words, up to each place, that equal the word `length` places before.
            equal = 0
            for place in range(length, len(words)):
                equal = equal + 1 if words[place] == words[place - length] else 0
                if equal >= length * _MOST_IN_A_ROW:
                    return (" ".join(words[place - length + 1 : place + 1]),)
        return ()


def form_check() -> PhraseCheck:
    """Returns the check "form"."""
    tables: Mapping[str, Mapping[str, str | float | list[str]]] = read_toml("form.toml")
    patterns: list[FaultCategory] = [
        PatternCategory(
            name=name,
            says=str(table["says"]),
            score=float(str(table["score"])),
            patterns=tuple(re.compile(pattern) for pattern in list(table["patterns"])),  # pyright: ignore[reportArgumentType]
        )
        for name, table in tables.items()
    ]
    return PhraseCheck(name="form", categories=(*patterns, Unfinished(), Loop()), clean="is plain, finished text")
