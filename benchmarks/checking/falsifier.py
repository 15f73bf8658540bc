"""Writes false sentences about a face, and true ones in other words, to measure a checker of captions.

The falsifier gets a caption and the true action units of the face. It knows nothing of the checker that it measures:
its words are its own (wordings.toml), and differ from those of `captions/grammar`. Each sentence has a kind:

- `true`: a true paraphrase: an action unit that is active, or one that is not, in free English.
- `negation`: it denies an action unit that is clearly active.
- `wrong_unit`: it claims an action unit that is not active, if possible one of the same region.
- `wrong_side`: it claims one side alone, for a unit that both sides show, or only the other one.
- `wrong_intensity`: it calls a strong movement weak, or a weak one strong.
- `edited`: a sentence of the caption in which one word became its opposite.

Sides are those of the person, as in FACS.
"""

import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emocap_shards.sample import Caption

from emocap_pretrain.captions.grammar.recognition import area_of

KINDS = ("true", "negation", "wrong_unit", "wrong_side", "wrong_intensity", "edited")
_TABLES: Mapping[str, Any] = tomllib.loads(Path(__file__).with_name("wordings.toml").read_text(encoding="utf-8"))
_TAIL = re.compile(r"( \(|:|,? (with|and) (?=.*(AU|ing\b|movement|action unit))|, without ).*$")
_CLEAR = 0.35  # From this intensity on a movement cannot be overlooked.
_WEAK, _STRONG = 0.35, 0.65  # Up to, and from which, intensities are surely weak or strong.


@dataclass(frozen=True, slots=True)
class TrueUnits:
    """Holds the true intensities of the action units of a face, in [0, 1], for each side of the person.

    A unit that is missing is not active. A unit without sides, such as a dropped jaw, has the same value on both.
    """

    left: Mapping[int, float]
    right: Mapping[int, float]

    @classmethod
    def symmetric(cls, units: Mapping[int, float]) -> "TrueUnits":
        return cls(units, units)

    def strength(self, unit: int) -> float:
        return max(self.left.get(unit, 0.0), self.right.get(unit, 0.0))

    def is_symmetric(self, unit: int) -> bool:
        return self.left.get(unit, 0.0) == self.right.get(unit, 0.0)


@dataclass(frozen=True, slots=True)
class _UnitWords:
    region: str
    confusable: Sequence[int]
    affirm: Sequence[str]
    deny: Sequence[str]
    side: Sequence[str]


UNITS: Mapping[int, _UnitWords] = {int(unit): _UnitWords(**table) for unit, table in _TABLES["units"].items()}
"""The words of each action unit about which the falsifier can write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenClaim:
    """Holds a sentence about a face, and whether it is true.

    Attributes:
        key: Key of the sample.
        kind: One of `KINDS`.
        is_true: Whether the sentence is true of the face.
        region: The region of the face that the sentence is about.
        units: The action units that the sentence claims or denies; empty for an edited sentence.
        sentence: Index of the local sentence of the caption that is about the same region, and can be replaced; None
            if there is none.
        text: The sentence.
    """

    key: str
    kind: str
    is_true: bool
    region: str
    units: tuple[int, ...]
    sentence: int | None
    text: str

    def row(self) -> dict[str, Any]:
        """Returns the claim as a value for one line of JSON."""
        return asdict(self)


def written_claims(key: str, caption: Caption, truth: TrueUnits, seed: int = 0) -> list[WrittenClaim]:
    """Returns sentences about a face; equal arguments give equal sentences.

    Of each kind and each unit for which the truth is beyond doubt, there is one sentence.

    Args:
        key: Key of the sample, which also decides between wordings.
        caption: A true caption of the face. Its local sentences are edited, and say which sentence can be replaced.
        truth: The action units of the face.
        seed: Another seed gives other wordings.
    """
    return list(_Writer(key, caption, truth, random.Random(f"{seed} {key}")).claims())


class _Writer:
    """Writes the claims about one face."""

    def __init__(self, key: str, caption: Caption, truth: TrueUnits, draw: random.Random) -> None:
        self._key, self._truth, self._draw, self._local = key, truth, draw, caption.local
        self._places: dict[str, int] = {}
        for index, sentence in enumerate(caption.local):
            self._places.setdefault(area_of(sentence) or "", index)

    def claims(self) -> Iterator[WrittenClaim]:
        """Yields all claims, unit by unit, and then the edited sentences."""
        for unit, words in UNITS.items():
            strength = self._truth.strength(unit)
            if strength >= _CLEAR:
                yield self._claim("true", unit, words.affirm, self._true_degree(strength))
                yield self._claim("negation", unit, words.deny)
                yield from self._wrong_side(unit, words)
            elif not strength and not any(self._truth.strength(other) for other in words.confusable):
                yield self._claim("true", unit, words.deny)
                yield self._claim("wrong_unit", unit, words.affirm, self._draw.choice(("", "middle", "strong")))
            if strength >= _STRONG:
                yield self._claim("wrong_intensity", unit, words.affirm, "weak")
            elif 0 < strength <= _WEAK:
                yield self._claim("wrong_intensity", unit, words.affirm, "strong")
        yield from self._edited()

    def _true_degree(self, strength: float) -> str:
        degree = "strong" if strength >= _STRONG else "weak" if strength <= _WEAK else "middle"
        return self._draw.choice(("", degree))

    def _wrong_side(self, unit: int, words: _UnitWords) -> Iterator[WrittenClaim]:
        if not words.side:
            return
        if self._truth.is_symmetric(unit):
            side = self._draw.choice(("left", "right"))
        elif min(self._truth.left.get(unit, 0.0), self._truth.right.get(unit, 0.0)):
            return  # Both sides move, but not equally: "alone" is neither quite true nor quite false.
        else:
            side = "right" if self._truth.left.get(unit) else "left"
            other = "left" if side == "right" else "right"
            yield self._claim("true", unit, words.side, side=other)
        yield self._claim("wrong_side", unit, words.side, side=side)

    def _claim(self, kind: str, unit: int, clauses: Sequence[str], degree: str = "", side: str = "") -> WrittenClaim:
        how = self._draw.choice(_TABLES["how"][degree]) if degree else ""
        clause = self._draw.choice(clauses).format(how=how, side=side)
        region = UNITS[unit].region
        return WrittenClaim(
            key=self._key,
            kind=kind,
            is_true=kind == "true",
            region=region,
            units=(unit,),
            sentence=self._places.get(region),
            text=f"{clause[0].upper()}{clause[1:]}.",
        )

    def _edited(self) -> Iterator[WrittenClaim]:
        """Yields each local sentence with the first edit that applies to it."""
        for index, sentence in enumerate(self._local):
            region = area_of(sentence)
            # The list of action units at the end would contradict the edited words.
            clause = _TAIL.sub("", sentence).rstrip(".") + "."
            for edit in _TABLES["edits"]:
                if "neither" in clause or any(map(self._truth.strength, edit["unless"])):
                    continue
                text, count = re.subn(rf"\b{edit['pattern']}\b", edit["replacement"], clause, count=1)
                if count and region:
                    yield WrittenClaim(
                        key=self._key,
                        kind="edited",
                        is_true=False,
                        region=region,
                        units=(),
                        sentence=index,
                        text=text,
                    )
                    break
