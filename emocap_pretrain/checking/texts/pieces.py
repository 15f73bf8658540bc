"""Divides captions into the texts that are judged one at a time, and makes findings about them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from emocap_shards.printable import printable
from emocap_shards.sample import Caption

from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding

NAMES = {
    "global": "global sentence",
    "local": "local sentence",
    "summary": "summary",
    "caption": "caption",
}
"""The names of the parts in the reasons of findings."""

_MOST_LETTERS = 4_000  # A text is judged by its beginning, so that a text of megabytes does not cost minutes.


@dataclass(frozen=True, slots=True)
class Piece:
    """Holds one text of a caption: the global sentence, one local sentence, or the summary.

    Attributes:
        caption: Index of the caption among those of the sample.
        part: "global", "local" or "summary".
        sentence: Index of the local sentence; None for the other parts.
        text: The text as it is written; of a very long text the first 4,000 characters.
    """

    caption: int
    part: str
    sentence: int | None
    text: str

    @property
    def name(self) -> str:
        """Returns what reasons call this piece, such as "global sentence"."""
        return NAMES[self.part]

    def finding(self, check: str, score: float | None, reason: str) -> CaptionFinding:
        """Returns a finding about this piece. `reason` is made safe to print, because it may quote the text."""
        return CaptionFinding(
            check=check,
            part=self.part,
            caption=self.caption,
            sentence=self.sentence,
            score=score,
            reason=printable(reason),
        )


def pieces_of(caption: Caption, number: int = 0) -> tuple[Piece, ...]:
    """Returns the texts of a caption that are not blank, in the order global, local, summary.

    >>> [piece.part for piece in pieces_of(Caption("Joy.", ("The lips are parted.",), ""))]
    ['global', 'local']
    """
    found = (
        Piece(number, "global", None, caption.global_),
        *(Piece(number, "local", index, text) for index, text in enumerate(caption.local)),
        Piece(number, "summary", None, caption.summary),
    )
    return tuple(replace(piece, text=piece.text[:_MOST_LETTERS]) for piece in found if piece.text.strip())


def all_pieces(face: CaptionedFace) -> Iterator[Piece]:
    """Yields the texts of all captions of a sample."""
    for number, caption in enumerate(face.captions):
        yield from pieces_of(caption, number)
