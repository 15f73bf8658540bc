"""Captions in numbers, part by part."""

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
    """The texts of one part: `words` in each, the `vocabulary`, and which `texts` repeat.

    `without` counts the samples none of whose captions has this part.
    """

    without: int
    words: Spread
    vocabulary: Counts
    texts: Counts


class PartCounter:
    """Counts one part; `texts_of` takes its texts out of a caption."""

    def __init__(self, texts_of: Callable[[Caption], Sequence[str]]) -> None:
        self._texts_of = texts_of
        self._without = 0
        self._words = NumberCounter()
        self._vocabulary = TextCounter(MOST_WORDS)
        self._texts = TextCounter(MOST_TEXTS)

    def add(self, captions: Sequence[Caption]) -> None:
        """The captions of one sample."""
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
    """By the name that a part has on disk."""
    return {
        "global": PartCounter(lambda caption: [caption.global_]),
        "local": PartCounter(lambda caption: caption.local),
        "summary": PartCounter(lambda caption: [caption.summary]),
    }


def words(text: str) -> list[str]:
    """Letters and digits between anything else, in lower case; "don't" and "half-open" are one word."""
    return [word[:_WORD_CHARACTERS] for word in _WORD.findall(text.lower())]


def caption_digest(caption: Caption) -> str:
    """Equal for equal captions, short for long ones."""
    text = "\x1f".join([caption.global_, *caption.local, "", caption.summary])
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _bounded(text: str) -> str:
    if len(text) <= _TEXT_CHARACTERS:
        return text
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{text[:_TEXT_CHARACTERS]}… ({digest})"
