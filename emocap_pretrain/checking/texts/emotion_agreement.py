"""Compares the emotions of the parts of a caption with each other, and with a label of the sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.emotions import NamedEmotion, agreement, named_emotions
from emocap_pretrain.checking.texts.phrases import quoted
from emocap_pretrain.checking.texts.pieces import Piece, pieces_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PartAgreementCheck:
    """Compares the emotions of the global sentence with those of the summary.

    Contradictions such as happiness and sadness have the score 0, and words for the same emotion 1
    (`emotions.agreement`). The check abstains if one of the parts names no emotion.
    """

    name: str = "part_agreement"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding about each caption that has both parts."""
        found: list[CaptionFinding] = []
        for number, caption in enumerate(face.captions):
            texts = {piece.part: piece.text for piece in pieces_of(caption, number)}
            if "summary" not in texts:
                continue
            first, second = named_emotions(texts.get("global", "")), named_emotions(texts["summary"])
            score = agreement(first, second)
            found.append(
                CaptionFinding(
                    check=self.name,
                    part="caption",
                    caption=number,
                    score=score,
                    reason=f"The global sentence {described(first)}, and the summary {described(second)}.",
                )
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAgreementCheck:
    """Compares the emotions of the global sentence and of the summary with a label of the sample.

    The label is read like a text, so "Happy", "happiness" and "Happily Surprised" are known. The check abstains if the
    sample has no such label, if the label is a number or names no emotion, or if a part names none.

    Attributes:
        label: Name of the label.
        name: Name of the check.
    """

    label: str = "emotion"
    name: str = "label_agreement"

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each global sentence and each summary."""
        return [
            self._judged(piece, face.labels.get(self.label))
            for number, caption in enumerate(face.captions)
            for piece in pieces_of(caption, number)
            if piece.part != "local"
        ]

    def _judged(self, piece: Piece, label: str | float | None) -> CaptionFinding:
        if not isinstance(label, str):
            which = "no" if label is None else "a number as"
            return piece.finding(self.name, None, f'The sample has {which} label "{self.label}".')
        expected, found = named_emotions(label.replace("_", " ")), named_emotions(piece.text)
        if not expected:
            return piece.finding(self.name, None, f'The label "{self.label}" is "{label}", which names no emotion.')
        return piece.finding(
            self.name, agreement(expected, found), f'The label is "{label}", and the {piece.name} {described(found)}.'
        )


def described(emotions: Sequence[NamedEmotion]) -> str:
    """Returns a predicate that quotes the emotions of a text, such as `names "joy" and denies "fear"`."""
    named, denied = (quoted([each.words for each in emotions if each.denied is no]) for no in (False, True))
    parts = [f"{verb} {words}" for verb, words in (("names", named), ("denies", denied)) if words]
    return " and ".join(parts) or "names no emotion"
