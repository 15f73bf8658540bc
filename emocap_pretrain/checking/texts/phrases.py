"""Finds the phrases of a vocabulary in a text, and says which of them it has found.

A vocabulary is a TOML file in this folder. Each of its tables is a category, such as "age", with these keys:

- `says`: a predicate for the reason of a finding, such as "states the age of the person".
- `score`: the score of a text with such a phrase, 0 to 1.
- `words`: patterns (regular expressions) that match whole words, in upper and lower case.
- `exact`: patterns that match only as they are written, such as names of languages that are also ordinary words.
- `but`: false friends. A match that overlaps with a match of such a pattern does not count.

`{name}` in a pattern is replaced by the list `name` of the table `[lists]`, as alternatives.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.pieces import all_pieces

_NEVER = "(?!)"
_LIST = re.compile(r"\{([a-z_]+)\}")
_MOST_WORDS = 3  # Words that a reason quotes for each category.


class FaultCategory(Protocol):
    """Finds one kind of fault in a text.

    Attributes:
        name: Name of the category, such as "age".
        says: A predicate that completes "The summary ...".
        score: The score of a text with such a fault, in [0, 1].
    """

    @property
    def name(self) -> str: ...
    @property
    def says(self) -> str: ...
    @property
    def score(self) -> float: ...

    def found(self, text: str) -> Sequence[str]:
        """Returns the faulty words as they are written; an empty sequence if there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PhraseCategory:
    """Holds the compiled phrases of one category of a vocabulary. It is a `FaultCategory`."""

    name: str
    says: str
    score: float
    words: re.Pattern[str]
    exact: re.Pattern[str]
    but: re.Pattern[str]

    def found(self, text: str) -> tuple[str, ...]:
        """Returns the phrases of this category that the text contains, as they are written and in their order."""
        friends = [match.span() for match in self.but.finditer(text)]
        matches = sorted(
            (match.start(), match.end(), match.group())
            for pattern in (self.words, self.exact)
            for match in pattern.finditer(text)
        )
        return tuple(
            words for start, end, words in matches if not any(begin < end and start < stop for begin, stop in friends)
        )


def read_toml(name: str) -> dict[str, Any]:
    """Returns the tables of a TOML file in this folder."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def read_categories(name: str) -> Mapping[str, PhraseCategory]:
    """Returns the categories of a vocabulary in this folder by their names, in the order of the file."""
    tables = read_toml(name)
    lists: Mapping[str, Sequence[str]] = tables.pop("lists", {})
    return {
        category: PhraseCategory(
            name=category,
            says=table["says"],
            score=table["score"],
            words=compiled(table.get("words", ()), lists),
            exact=compiled(table.get("exact", ()), lists, 0),
            but=compiled(table.get("but", ()), lists),
        )
        for category, table in tables.items()
    }


def compiled(
    patterns: Sequence[str], lists: Mapping[str, Sequence[str]] | None = None, flags: int = re.IGNORECASE
) -> re.Pattern[str]:
    """Returns one pattern for all alternatives. Its matches neither begin nor end within a word.

    "I can" is not found in "I can't". Braces of regular expressions that hold numbers are kept.
    """

    def alternatives(match: re.Match[str]) -> str:
        return f"(?:{'|'.join((lists or {})[match[1]])})"

    each = "|".join(_LIST.sub(alternatives, pattern) for pattern in patterns)
    return re.compile(rf"(?<!\w)(?:{each})(?!\w|['\u2019]t)" if each else _NEVER, flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhraseCheck:
    """Finds phrases of some categories in all texts of the captions.

    A text without such a phrase has the score 1, another one the lowest score of its categories.

    Attributes:
        name: Name of the check.
        categories: What is looked for.
        clean: A predicate for the reason of a text without such a phrase.
    """

    name: str
    categories: Sequence[FaultCategory]
    clean: str

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each text; a blank text has none."""
        found: list[CaptionFinding] = []
        for piece in all_pieces(face):
            faults = [(category, words) for category in self.categories if (words := category.found(piece.text))]
            score = min((category.score for category, _ in faults), default=1.0)
            reason = f"The {piece.name} {joined([stated(*fault) for fault in faults]) or self.clean}."
            found.append(piece.finding(self.name, score, reason))
        return found


def stated(category: FaultCategory, words: Sequence[str]) -> str:
    """Returns a predicate that quotes the words, such as `states the gender of the person ("woman")`."""
    return f"{category.says} ({quoted(words)})"


def quoted(words: Sequence[str]) -> str:
    """Returns the different words in quotes; of many words only the first ones."""
    different = list(dict.fromkeys(" ".join(word.split()) for word in words))
    more = f" and {len(different) - _MOST_WORDS} more" if len(different) > _MOST_WORDS else ""
    return ", ".join(f'"{word}"' for word in different[:_MOST_WORDS]) + more


def joined(predicates: Sequence[str]) -> str:
    """Returns predicates as one, with "and" before the last one."""
    return " and ".join(part for part in (", ".join(predicates[:-1]), *predicates[-1:]) if part)
