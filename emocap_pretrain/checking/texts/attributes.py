"""Finds statements about who a person is: age, gender, ethnicity, religion, looks, health, and names.

A caption of an expression must not contain them, because a model that learns from such captions learns to guess them.
The words are in attributes.toml. Names are found by their capitals.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from emocap_pretrain.captions.grammar.words import read
from emocap_pretrain.checking.texts.emotions import named_emotions
from emocap_pretrain.checking.texts.phrases import FaultCategory, PhraseCheck, read_categories, read_toml

_CATEGORIES = read_categories("attributes.toml")
PRONOUN, NAME = "pronoun", "name"
ATTRIBUTES = (*(name for name in _CATEGORIES if name != PRONOUN), NAME)
"""The categories of `attribute_check`, without pronouns."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019.-][^\W\d_]+)*")
# A capital is not that of a name at the beginning of a sentence, of a quotation, or after a colon.
_BEGINNING = re.compile(r"(?:^|[.!?:;(\[\"\u201c\u2018'/|*-])\s*$")
_NEAR = 16  # Characters before a word that are looked at.
_MOST_CAPITALS = 0.5  # A text with a greater share of words with a capital is written as a title.


@dataclass(frozen=True, slots=True, kw_only=True)
class CapitalizedNames:
    """Finds words that begin with a capital within a sentence, such as "Maria". It is a `FaultCategory`.

    Words of the grammar of captions, of the emotions and of other categories ("Hispanic") are no names, also if they
    are capitalized ("Inner Brow Raiser"). Nothing is found in a text in which most words have a capital.
    """

    ordinary: Collection[str]
    others: Sequence[FaultCategory] = ()
    name: str = NAME
    says: str = "has words that look like a name"
    score: float = 0.3

    def found(self, text: str) -> tuple[str, ...]:
        """Returns the words that look like names, as they are written; neighbouring words are one name."""
        words = list(_WORD.finditer(text))
        capital = [match for match in words if match.group()[0].isupper()]
        if len(capital) > max(2, _MOST_CAPITALS * len(words)):
            return ()
        found: list[tuple[int, int]] = []
        for match in capital:
            word = match.group()
            if (
                word.isupper()
                or self._is_ordinary(word)
                or _BEGINNING.search(text[max(0, match.start() - _NEAR) : match.start()])
            ):
                continue
            if found and text[found[-1][1] : match.start()].isspace():
                found[-1] = (found[-1][0], match.end())
            else:
                found.append(match.span())
        return tuple(text[start:end] for start, end in found)

    def _is_ordinary(self, word: str) -> bool:
        parts = re.sub(r"['\u2019]s$", "", word).split("-")
        if any(part.islower() for part in parts) or all(part.lower() in self.ordinary for part in parts):
            return True
        return bool(named_emotions(word)) or any(other.found(word) for other in self.others)


def attribute_check(
    *, categories: Collection[str] = ATTRIBUTES, pronouns: bool = False, ordinary: Collection[str] = ()
) -> PhraseCheck:
    """Returns the check "attributes".

    Args:
        categories: Which categories of attributes.toml are looked for, and "name".
        pronouns: Whether "he", "her" and other pronouns with a gender are faults.
        ordinary: Further words, in lower case, that are no names.

    Raises:
        ValueError: If a category does not exist.
    """
    if unknown := set(categories) - set(ATTRIBUTES):
        raise ValueError(f"unknown categories {sorted(unknown)}; there are {', '.join(ATTRIBUTES)}.")
    found: list[FaultCategory] = [_CATEGORIES[name] for name in ATTRIBUTES if name in categories and name != NAME]
    if pronouns:
        found.append(_CATEGORIES[PRONOUN])
    if NAME in categories:
        found.append(
            CapitalizedNames(ordinary=frozenset(ordinary) | _ordinary_words(), others=(*_CATEGORIES.values(),))
        )
    return PhraseCheck(name="attributes", categories=found, clean="says nothing about who the person is")


def _ordinary_words() -> frozenset[str]:
    """Returns all words of the grammar of captions and of the vocabularies in this folder, in lower case."""
    texts = [*map(str, map(read, ("words.toml", "looks.toml")))]
    texts += [str(read_toml(name)) for name in ("attributes.toml", "movements.toml", "names.toml")]
    return frozenset(re.findall(r"[^\W\d_]+", " ".join(texts).lower()))
