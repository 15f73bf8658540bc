"""Divides a sentence of free English into items: parts of the face, actions, and the words that qualify them.

`claims.py` finds the claims in these items. The expressions are those of movements.toml.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from emocap_pretrain.checking.movements import VOCABULARY

_CODE = r"[LR]?\d{1,2}[A-ELR]{0,2}"
_ONE_CODE = re.compile(r"(?P<before>[LR]?)(?P<unit>\d{1,2})(?P<after>[A-ELR]{0,2})", re.IGNORECASE)
# A list such as "AUs 1, 2 and 4" needs the plural, because "AU4, 2 people" is none; "AU6+12" is a list too.
_CODES = re.compile(
    rf"\b(?:(?:AUs|action units)[\s:#-]*{_CODE}(?:\s*(?:[+/&]|,(?:\s*and\b)?|\band\b)\s*(?:AUs?\s*)?{_CODE}\b)*"
    rf"|(?:AU|action unit)[\s:#-]*{_CODE}(?:\s*[+]\s*(?:AU\s*)?{_CODE}\b)*)(?!\w)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z0-9_']+|[,;:.!?()]")
_LONGEST = 2000  # Characters; a sentence beyond this length is cut, so that no text can take long.


def normalized(sentence: str) -> str:
    """Returns the sentence in lower case, with single blanks between words and marks, and codes as words."""

    def coded(match: re.Match[str]) -> str:
        codes = _ONE_CODE.finditer(re.sub(r"(?i)AUs?|action units?", " ", match[0]))
        return " and ".join(f" au_{code['unit']}_{code['before']}{code['after']} " for code in codes)

    text = _CODES.sub(coded, sentence[:_LONGEST]).lower().replace("\u2019", "'")
    text = re.sub(r"can't|cannot", "can not", text).replace("n't", " not")
    text = re.sub(r"[\u2013\u2014]", " , ", text).replace("-", " ")
    return " ".join(_WORD.findall(text))


@dataclass(frozen=True, slots=True)
class SentenceItem:
    """Holds an expression of the sentence. `names` has the names of all patterns that match it, by their kinds."""

    text: str
    names: dict[str, tuple[str, ...]]

    def is_a(self, *kinds: str) -> bool:
        return any(kind in self.names for kind in kinds)

    @property
    def actions(self) -> tuple[str, ...]:
        return (*self.names.get("verb", ()), *self.names.get("action", ()))

    @property
    def part(self) -> str | None:
        return self.names["part"][0] if "part" in self.names else None


def find_items(text: str) -> Sequence[SentenceItem]:
    """Divides a normalized sentence into items; at each place the longest expression of the vocabulary counts."""
    found: list[SentenceItem] = []
    place = 0
    while place < len(text):
        item = item_at(text, place)
        found.append(item)
        place += len(item.text) + 1
    return found


def item_at(text: str, place: int) -> SentenceItem:
    end = text.find(" ", place)
    word = text[place : end if end >= 0 else len(text)]
    if word in ",;:.!?()":
        return SentenceItem(word, {"comma" if word == "," else "end": (word,)})
    if match := re.fullmatch(r"au_(\d+)_([a-z]*)", word):
        return SentenceItem(word, {"code": match.groups()})
    longest, names = len(word), dict[str, tuple[str, ...]]()
    for pattern in VOCABULARY:
        match = pattern.regex.match(text, place)
        length = match.end() - place if match else 0
        if length > longest:
            longest, names = length, {}
        if match and length == longest:
            names[pattern.kind] = (*names.get(pattern.kind, ()), pattern.name)
    return SentenceItem(text[place : place + longest], names or {"word": (word,)})
