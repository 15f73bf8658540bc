"""Summarises annotations: the texts of each caption part, the values of text labels, and those of numeric labels."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emocap_shards.annotation import Labels
from emocap_shards.inspecting.counters import Counts, NumberCounter, Spread, TextCounter
from emocap_shards.sample import Caption

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_WORD_CHARACTERS = 64
_TEXT_CHARACTERS = 400
# Bounds on memory. docs/looking-at-data.md tells the user what happens beyond them.
_MOST_WORDS, _MOST_TEXTS = 200_000, 100_000
_TOP_WORDS, _TOP_TEXTS = 60, 12
MOST_NAMES = 200
_MOST_VALUES = 10_000
_TOP_VALUES = 40
_VALUE_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class PartStatistics:
    """Summarises the texts of one caption part.

    Attributes:
        without: Number of samples in which no caption has this part.
        words: Distribution of the number of words in a text.
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
        self._vocabulary = TextCounter(_MOST_WORDS)
        self._texts = TextCounter(_MOST_TEXTS)

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
    """Returns a mapping from the name of each caption part in an annotation, such as "global", to a new counter."""
    return {
        "global": PartCounter(lambda caption: [caption.global_]),
        "local": PartCounter(lambda caption: caption.local),
        "summary": PartCounter(lambda caption: [caption.summary]),
    }


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case. "don't" and "half-open" are one word each."""
    return [word[:_WORD_CHARACTERS] for word in _WORD.findall(text.lower())]


def caption_digest(caption: Caption) -> str:
    """Returns a short digest that is equal for equal captions.

    The digest is that of all sentences of the caption, joined by a separator character. An empty sentence marks the end
    of the local sentences. So two captions that divide the same words into parts differently have different digests.
    """
    return _digest("\x1f".join([caption.global_, *caption.local, "", caption.summary]))


def _bounded(text: str) -> str:
    """Returns the text. A long text is cut, and the digest of the whole text is appended.

    With the digest, two long texts remain distinct if they differ only after the cut.
    """
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[:_TEXT_CHARACTERS]}… ({_digest(text)})"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


class LabelCounter:
    """Summarises the values of up to 200 text labels and up to 200 numeric labels, each under its name.

    If there are more labels, those whose names occur later are left out. `values_left_out` is the number of their
    values. The number of their names is not counted, because this would need a set of names without a limit.
    """

    def __init__(self) -> None:
        self._texts: dict[str, TextCounter] = {}
        self._numbers: dict[str, NumberCounter] = {}
        self.values_left_out = 0

    def add(self, labels: Labels) -> None:
        for name, label in labels.items():
            if isinstance(label, str):
                self._add_text(name, label)
            else:
                self._add_number(name, label)

    def texts(self) -> Mapping[str, Counts]:
        """Returns the counts of the values of each text label, sorted by name."""
        return {name: tally.counts(_TOP_VALUES) for name, tally in sorted(self._texts.items(), key=_natural)}

    def numbers(self) -> Mapping[str, Spread]:
        """Returns the distribution of each numeric label, sorted by name."""
        return {name: numbers.spread() for name, numbers in sorted(self._numbers.items(), key=_natural)}

    def _add_text(self, name: str, label: str) -> None:
        if name in self._texts or len(self._texts) < MOST_NAMES:
            self._texts.setdefault(name, TextCounter(_MOST_VALUES)).add([label[:_VALUE_CHARACTERS]])
        else:
            self.values_left_out += 1

    def _add_number(self, name: str, label: float) -> None:
        if name in self._numbers or len(self._numbers) < MOST_NAMES:
            self._numbers.setdefault(name, NumberCounter()).add([label])
        else:
            self.values_left_out += 1


def _natural(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Returns a sorting key for (name, value), which compares digits in the name as a number: AU2 is before AU10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", item[0])]
