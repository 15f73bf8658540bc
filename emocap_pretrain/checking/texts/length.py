"""Checks how long the texts of a caption are: in words, in sentences, and in the tokens of a run."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from emocap_pretrain.captions.flat import sentences
from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.pieces import Piece, all_pieces

WORDS: Mapping[str, tuple[int, int]] = {"global": (3, 40), "local": (3, 50), "summary": (5, 120)}
"""The least and the greatest number of words of each part that are no fault."""

_WORD = re.compile(r"\w+(?:['\u2019.-]\w+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCheck:
    """Counts the words of each text, and its sentences where one is due.

    The score is the ratio of the number and of the bound that it exceeds, and 1 within the bounds. Texts in languages
    without blanks between words are not judged by this check.

    Attributes:
        words: The least and the greatest number of words of each part.
        one_sentence: The parts that consist of one sentence. The summary of a divided flat caption has several
            (`captions/flat.py`).
        name: Name of the check.
    """

    words: Mapping[str, tuple[int, int]] = field(default_factory=lambda: WORDS)
    one_sentence: Sequence[str] = ("global", "local")
    name: str = "length"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each text; a blank text has none."""
        return [self._judged(piece) for piece in all_pieces(face)]

    def _judged(self, piece: Piece) -> CaptionFinding:
        count = len(_WORD.findall(piece.text))
        least, most = self.words[piece.part]
        if not count or _has_no_blanks(piece.text):
            return piece.finding(self.name, None, f"The words of the {piece.name} cannot be counted.")
        score = min(1.0, count / least, most / count)
        reason = f"The {piece.name} has {count} words; {least} to {most} are expected"
        if piece.part in self.one_sentence and (number := len(sentences(piece.text))) > 1:
            score = min(score, 1 / number)
            reason += f", and it has {number} sentences instead of one"
        return piece.finding(self.name, score, f"{reason}.")


def _has_no_blanks(text: str) -> bool:
    """Returns whether a text has a character of Chinese, Japanese or Thai, which write no blanks between words."""
    return bool(re.search(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]", text))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensCheck:
    """Finds texts of which a text tower reads only the beginning. The score is the share of tokens that it reads.

    Attributes:
        counts: Returns the number of tokens of each text, with start and end tokens (`data/tokenizer.py`).
        limits: The greatest number of tokens of each part (`model.text.lengths`); a part without a limit is not judged.
        name: Name of the check.
    """

    counts: Callable[[Sequence[str]], Sequence[int]]
    limits: Mapping[str, int]
    name: str = "tokens"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each text of a part with a limit."""
        pieces = [piece for piece in all_pieces(face) if piece.part in self.limits]
        return [
            self._judged(piece, count)
            for piece, count in zip(pieces, self.counts([piece.text for piece in pieces]), strict=True)
        ]

    def _judged(self, piece: Piece, count: int) -> CaptionFinding:
        limit = self.limits[piece.part]
        cut = ", so its end is cut" if count > limit else ""
        return piece.finding(
            self.name,
            min(1.0, limit / max(1, count)),
            f"The {piece.name} has {count} tokens, and the text tower reads {limit}{cut}.",
        )
