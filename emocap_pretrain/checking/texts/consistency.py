"""Compares the captions of one image with each other.

A model that answers twice and says two things was wrong at least once. So how far several sampled answers agree is a
sign of quality that needs no face and no label.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from emocap_shards.sample import Caption

from emocap_pretrain.captions.grammar.recognition import area_of
from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.emotions import NamedEmotion, agreement, named_emotions
from emocap_pretrain.checking.texts.phrases import compiled, read_toml
from emocap_pretrain.checking.texts.pieces import pieces_of

ClaimsOf = Callable[[str], Sequence[Hashable]]
"""Returns the claims of a sentence. Equal claims are the same claim."""

_CLAUSE = re.compile(r"[,.;:!?]|\b(?:while|although|but|with)\b", re.IGNORECASE)


def movements(sentence: str) -> tuple[tuple[str, str], ...]:
    """Returns the regions of a sentence with the movements that it says of them, such as ("eyebrows", "raised").

    This is a simple reading: each clause is about its first region, a clause without a region about that of the clause
    before it, and denials are not understood. The words are in movements.toml.

    >>> movements("The eyebrows are raised, and drawn together.")
    (('eyebrows', 'raised'), ('eyebrows', 'together'))
    """
    return tuple(dict.fromkeys(_movements(sentence)))


def _movements(sentence: str) -> Iterator[tuple[str, str]]:
    region: str | None = None
    for clause in _CLAUSE.split(sentence):
        region = area_of(clause) or region
        if region:
            yield from ((region, name) for name, pattern in _patterns() if pattern.search(clause))


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((name, compiled(words)) for name, words in read_toml("movements.toml")["movements"].items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyCheck:
    """Compares each caption of a sample with its other captions.

    Each caption has two findings. The first one compares the emotions of its global sentence and its summary with those
    of the other captions (`emotions.agreement`). The second one compares the claims of its local sentences: the score
    is twice the number of common claims, divided by the number of claims of both captions (the Dice coefficient). Both
    are means over the other captions, without those for which the answer is not known.

    Attributes:
        claims_of: Returns the claims of a sentence. The default knows regions and their movements.
        name: Name of the check.
    """

    claims_of: ClaimsOf = movements
    name: str = "consistency"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns two findings for each caption; none for a sample with a single caption."""
        if len(face.captions) < 2:
            return ()
        emotions = [_emotions(caption) for caption in face.captions]
        claims = [self._claims(caption) for caption in face.captions]
        found: list[CaptionFinding] = []
        for number in range(len(face.captions)):
            others = [other for other in range(len(face.captions)) if other != number]
            feelings = [agreement(emotions[number], emotions[other]) for other in others]
            facts = [_dice(claims[number], claims[other]) for other in others]
            found.append(self._finding("caption", number, feelings, "emotion"))
            found.append(self._finding("local", number, facts, "regions of the face"))
        return found

    def _claims(self, caption: Caption) -> frozenset[Hashable]:
        return frozenset(
            chain.from_iterable(self.claims_of(piece.text) for piece in pieces_of(caption) if piece.part == "local")
        )

    def _finding(self, part: str, number: int, scores: Sequence[float | None], what: str) -> CaptionFinding:
        known = [score for score in scores if score is not None]
        score = sum(known) / len(known) if known else None
        reason = (
            f"No other caption can be compared with this one in what it says of the {what}."
            if score is None
            else f"The caption agrees by {score:.2f} with {len(known)} others in what it says of the {what}."
        )
        return CaptionFinding(check=self.name, part=part, caption=number, score=score, reason=reason)


def _emotions(caption: Caption) -> tuple[NamedEmotion, ...]:
    """Returns the emotions of the global sentence and of the summary."""
    texts = [piece.text for piece in pieces_of(caption) if piece.part != "local"]
    return tuple(chain.from_iterable(map(named_emotions, texts)))


def _dice(first: frozenset[Hashable], second: frozenset[Hashable]) -> float | None:
    """Returns the Dice coefficient of two sets of claims; None if one of them is empty."""
    if not first or not second:
        return None
    return 2 * len(first & second) / (len(first) + len(second))
