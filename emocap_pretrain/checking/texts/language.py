"""Finds texts that are not in the expected language, with the library py3langid and the model in its package.

The library returns a probability for each of its languages. A short English sentence, or one of technical terms, has a
small probability too: "Neutral." has 0.01. So a text counts as foreign only if it is long enough and the probability of
the expected language is very small, and the check abstains in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from emocap_pretrain.checking.check import CaptionedFace, CaptionFinding
from emocap_pretrain.checking.texts.pieces import Piece, all_pieces
from emocap_pretrain.errors import ConfigError

_LEAST_BYTES = 20  # Of the letters in UTF-8; a Chinese character has 3 bytes, and a letter of English has one.


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageCheck:
    """Judges the language of each text. The score is 1 for the expected language and 0 for another one.

    Attributes:
        language: The expected language by its code of ISO 639, such as "en".
        sure: The least probability at which a text is in the expected language.
        foreign: The greatest probability at which a text is in another language.
        name: Name of the check.

    Raises:
        ConfigError: If the library does not know the language.
    """

    language: str = "en"
    sure: float = 0.3
    foreign: float = 0.001
    name: str = "language"

    def __post_init__(self) -> None:
        known = sorted(_identifier().labels)
        if self.language not in known:
            raise ConfigError(f"language={self.language!r} is unknown; known are {', '.join(known)}.")

    def findings(self, face: CaptionedFace) -> Sequence[CaptionFinding]:
        """Returns one finding for each text; the check abstains for short texts and if it is not sure."""
        return [self._judged(piece) for piece in all_pieces(face)]

    def _judged(self, piece: Piece) -> CaptionFinding:
        size = len("".join(filter(str.isalpha, piece.text)).encode())
        if size < _LEAST_BYTES:
            return piece.finding(self.name, None, f"The {piece.name} is too short to tell its language.")
        probable = _probabilities(piece.text)
        expected = probable[self.language]
        if expected >= self.sure:
            return piece.finding(self.name, 1.0, f'The {piece.name} is in the language "{self.language}".')
        if expected <= self.foreign:
            other = max(probable, key=probable.__getitem__)
            return piece.finding(
                self.name, 0.0, f'The {piece.name} seems to be in the language "{other}", not "{self.language}".'
            )
        return piece.finding(self.name, None, f"The language of the {piece.name} is not certain.")


@cache
def _identifier() -> Any:
    """Returns the library's classifier, which takes about a second to load."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _probabilities(text: str) -> Mapping[str, float]:
    """Returns the probability of each language."""
    return {language: float(probability) for language, probability in _identifier().rank(text)}
