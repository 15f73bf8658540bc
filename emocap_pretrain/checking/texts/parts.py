"""Checks that a caption has all its parts, describes enough regions of the face, and says nothing twice."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from emocap_shards.sample import Caption

from emocap_pretrain.captions.grammar.recognition import area_of
from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.pieces import NAMES, Piece, pieces_of

PARTS = ("global", "local", "summary")
_WORD = re.compile(r"\w+")
_ARTICLES = {"a", "an", "the", "both"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsCheck:
    """Counts the parts of each caption, and the regions that its local sentences describe.

    The finding about the caption has the share of `required` that is present. That about the local part has the number
    of described regions divided by `regions`, at most 1. A local sentence that names no region has the score 0.

    Attributes:
        required: The parts that a caption must have.
        regions: How many different regions of the face the local sentences describe at least; 0 if any number will do.
        name: Name of the check.
    """

    required: Sequence[str] = PARTS
    regions: int = 3
    name: str = "parts"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns findings about each caption, then its local part, then its local sentences."""
        found: list[CaptionFinding] = []
        for number, caption in enumerate(face.captions):
            pieces = pieces_of(caption, number)
            found.append(self._present(number, {piece.part for piece in pieces}))
            local = [(piece, area_of(piece.text)) for piece in pieces if piece.part == "local"]
            if local and self.regions:
                found.append(self._covered(number, {area for _, area in local if area}))
            found.extend(self._named(piece, area) for piece, area in local)
        return found

    def _present(self, number: int, present: set[str]) -> CaptionFinding:
        missing = [part for part in self.required if part not in present]
        names = " and no ".join(NAMES[part] for part in missing)
        return CaptionFinding(
            check=self.name,
            part="caption",
            caption=number,
            score=1 - len(missing) / max(1, len(self.required)),
            reason=f"The caption has no {names}." if missing else "The caption has all its parts.",
        )

    def _covered(self, number: int, areas: set[str]) -> CaptionFinding:
        return CaptionFinding(
            check=self.name,
            part="local",
            caption=number,
            score=min(1.0, len(areas) / self.regions),
            reason=f"The local sentences describe {len(areas)} regions ({', '.join(sorted(areas)) or 'none'}); "
            f"at least {self.regions} are wanted.",
        )

    def _named(self, piece: Piece, area: str | None) -> CaptionFinding:
        return CaptionFinding(
            check=self.name,
            part="local",
            caption=piece.caption,
            sentence=piece.sentence,
            region=area or "",
            score=1.0 if area else 0.0,
            reason=f"The local sentence is about the {area}." if area else "The local sentence names no region.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionCheck:
    """Finds sentences of a caption that say what another one has said before, and regions with too many sentences.

    Two sentences are equal if they have the same words in the same order, without articles, punctuation and case. So
    sentences about the left and the right eyebrow differ.

    Attributes:
        per_region: The greatest number of local sentences about one region. The mouth has two regions of the grammar.
        name: Name of the check.
    """

    per_region: int = 2
    name: str = "repetition"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each text but the global sentence, which comes first and so repeats nothing."""
        return [
            finding for number, caption in enumerate(face.captions) for finding in self._of_caption(caption, number)
        ]

    def _of_caption(self, caption: Caption, number: int) -> list[CaptionFinding]:
        found: list[CaptionFinding] = []
        seen: dict[tuple[str, ...], str] = {}
        regions: Counter[str] = Counter()
        for piece in pieces_of(caption, number):
            words = tuple(word for word in _WORD.findall(piece.text.lower()) if word not in _ARTICLES)
            area = area_of(piece.text) if piece.part == "local" else None
            regions.update([area] if area else [])
            if piece.part != "global":
                found.append(self._judged(piece, seen.get(words), area, regions))
            seen.setdefault(words, piece.name)
        return found

    def _judged(self, piece: Piece, earlier: str | None, area: str | None, regions: Counter[str]) -> CaptionFinding:
        if earlier:
            another = "another" if earlier == piece.name else "the"
            return piece.finding(self.name, 0.0, f"The {piece.name} repeats {another} {earlier}.")
        if area and regions[area] > self.per_region:
            return piece.finding(
                self.name,
                self.per_region / regions[area],
                f"This is local sentence {regions[area]} about the {area}; at most {self.per_region} are expected.",
            )
        return piece.finding(self.name, 1.0, f"The {piece.name} repeats no other text of the caption.")
