"""Summarises the texts of captions, separately for each caption part."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emocap_shards.inspecting.counters import Counts, NumberCounter, Spread, TextCounter
from emocap_shards.sample import Caption

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_WORD_CHARACTERS = 64
_TEXT_CHARACTERS = 400
MOST_WORDS, MOST_TEXTS = 200_000, 100_000
_TOP_WORDS, _TOP_TEXTS = 60, 12


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """Summarises the texts of one caption part.

    Attributes:
        without: Number of samples in which no caption has this part.
        words: Number of words in each text.
        vocabulary: How often each word occurs.
        texts: How often each text occurs.
    """

    without: int
    words: Spread
    vocabulary: Counts
    texts: Counts


class PartCounter:
    """Counts the texts of one caption part. `texts_of` returns the texts of that part in a caption."""

    def __init__(self, texts_of: Callable[[Caption], Sequence[str]]) -> None:
        self._texts_of = texts_of
        self._without = 0
        self._words = NumberCounter()
        self._vocabulary = TextCounter(MOST_WORDS)
        self._texts = TextCounter(MOST_TEXTS)

    def add(self, captions: Sequence[Caption]) -> None:
        """Adds the captions of one sample."""
        texts = [text for caption in captions for text in self._texts_of(caption) if text.strip()]
        self._without += not texts
        for text in texts:
            found = words(text)
            self._words.add([len(found)])
            self._vocabulary.add(found)
        self._texts.add(map(_bounded, texts))

    def part(self) -> PartStatistics:
        vocabulary, texts = self._vocabulary.counts(_TOP_WORDS), self._texts.counts(_TOP_TEXTS)
        return PartStatistics(self._without, self._words.spread(), vocabulary, texts)


def part_counters() -> dict[str, PartCounter]:
    """Returns a counter for each caption part, by the name that the part has in an annotation."""
    return {
        "global": PartCounter(lambda caption: [caption.global_]),
        "local": PartCounter(lambda caption: caption.local),
        "summary": PartCounter(lambda caption: [caption.summary]),
    }


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case. "don't" and "half-open" are one word each."""
    return [word[:_WORD_CHARACTERS] for word in _WORD.findall(text.lower())]


def caption_digest(caption: Caption) -> str:
    """Returns a short digest that is equal for equal captions."""
    text = "\x1f".join([caption.global_, *caption.local, "", caption.summary])
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _bounded(text: str) -> str:
    """Returns a text that is cut if it is long. A digest of the whole text keeps different long texts apart."""
    if len(text) <= _TEXT_CHARACTERS:
        return text
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{text[:_TEXT_CHARACTERS]}… ({digest})"
