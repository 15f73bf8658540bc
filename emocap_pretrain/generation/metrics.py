"""Compares written captions with reference captions by BLEU, METEOR, ROUGE-L and CIDEr-D.

sacrebleu computes BLEU, nltk computes METEOR, and pycocoevalcap computes ROUGE-L and CIDEr-D. This module adds what
these libraries lack: the score of each draw of a bootstrap. BLEU is defined for a set of captions, so the n-gram counts
of the captions in a draw are added up. The other three scores are means over captions. CIDEr-D weighs n-grams by how
rare they are in the references (TF-IDF); these weights always come from the references of all images, and not from
those of a draw.

METEOR, ROUGE-L and CIDEr-D read the words of a text in lower case, without punctuation except for apostrophes within
words. The tools of COCO use a tokenizer in Java, which gives about the same words. METEOR matches equal words and equal
stems, but no synonyms, because WordNet, the dictionary of synonyms that nltk can read, comes with none of these
libraries.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.intervals import Weights

_WORDS = re.compile(r"\w+(?:'\w+)*")
_LIBRARIES = {"sacrebleu": "sacrebleu", "nltk": "nltk", "pycocoevalcap": "pycocoevalcap"}


class Measured(Protocol):
    """Gives the score of a set of written captions: `score` for all captions, `draws` for each draw of a bootstrap.

    The weights that `draws` takes say how many times each draw contains each caption.
    """

    def score(self) -> float: ...
    def draws(self, weights: Weights) -> Float[np.ndarray, " draws"]: ...


@dataclass(frozen=True, slots=True)
class CaptionMetric:
    """Describes a metric of captions.

    Attributes:
        name: The name in files, which does not change between versions.
        title: The name in tables.
        measure: Takes the written caption of each image and the references of each image, and returns an object that
            gives the score of the written captions.
    """

    name: str
    title: str
    measure: Callable[[Sequence[str], Sequence[Sequence[str]]], Measured]


def need_libraries() -> None:
    """Checks that the libraries that compute the metrics are installed: sacrebleu, nltk and pycocoevalcap.

    Raises:
        ConfigError: If one of these libraries is missing.
    """
    if missing := [name for module, name in _LIBRARIES.items() if find_spec(module) is None]:
        raise ConfigError(f"scores of captions need {', '.join(missing)}: pip install 'emocap-pretrain[generation]'.")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation except for apostrophes within words.

    >>> words("The brow is furrowed; it's a half-smile.")
    ['the', 'brow', 'is', 'furrowed', "it's", 'a', 'half', 'smile']
    """
    return _WORDS.findall(text.lower())


@dataclass(frozen=True, slots=True, eq=False)
class MeanOfCaptions:
    """Holds one value for each caption. The score is the mean of the values."""

    values: Float[np.ndarray, " captions"]

    def score(self) -> float:
        return float(self.values.mean())

    def draws(self, weights: Weights) -> Float[np.ndarray, " draws"]:
        return weights @ self.values / weights.sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class CorpusBleu:
    """Holds the counts of n-grams of each caption. BLEU-4, in [0, 1], follows from their sums over the captions.

    The columns of `counts` are the numbers of matching n-grams for n = 1 to 4, the numbers of all n-grams for n = 1 to
    4, the length of the caption, and the length of the reference that is closest to it in length.
    """

    counts: Float[np.ndarray, "captions 10"]

    def score(self) -> float:
        return _bleu_of(self.counts.sum(0))

    def draws(self, weights: Weights) -> Float[np.ndarray, " draws"]:
        return np.array([_bleu_of(row) for row in weights @ self.counts])


def _bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusBleu:
    from sacrebleu.metrics.bleu import BLEU

    # The effective order changes the score of a sentence, and not its counts. Without it, sacrebleu prints a warning.
    bleu = BLEU(lowercase=True, effective_order=True)
    rows = [bleu.sentence_score(text, list(of)) for text, of in zip(written, references, strict=True)]
    return CorpusBleu(np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows], dtype=float))


def _bleu_of(sums: Float[np.ndarray, " 10"]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    found: list[int] = [round(float(value)) for value in sums]
    score: Any = BLEU.compute_bleu(found[:4], found[4:8], found[8], found[9], smooth_method="exp")
    return score.score / 100


class _NoSynonyms:
    """Takes the place of the WordNet reader of nltk, and knows no synonyms of any word."""

    def synsets(self, word: str) -> list[Any]:  # noqa: ARG002 - the interface of nltk
        return []


def _meteor(written: Sequence[str], references: Sequence[Sequence[str]]) -> MeanOfCaptions:
    from nltk.translate.meteor_score import meteor_score

    none: Any = _NoSynonyms()
    pairs = zip(written, references, strict=True)
    return MeanOfCaptions(
        np.array([meteor_score([words(each) for each in of], words(text), wordnet=none) for text, of in pairs])
    )


def _rouge(written: Sequence[str], references: Sequence[Sequence[str]]) -> MeanOfCaptions:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    pairs = zip(written, references, strict=True)
    return MeanOfCaptions(np.array([rouge.calc_score([_spaced(text)], list(map(_spaced, of))) for text, of in pairs]))


def _cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> MeanOfCaptions:
    from pycocoevalcap.cider.cider import Cider

    found = {number: [_spaced(text)] for number, text in enumerate(written)}
    true = {number: list(map(_spaced, of)) for number, of in enumerate(references)}
    return MeanOfCaptions(np.asarray(Cider().compute_score(true, found)[1]))


def _spaced(text: str) -> str:
    return " ".join(words(text))


METRICS: tuple[CaptionMetric, ...] = (
    CaptionMetric("bleu", "BLEU-4", _bleu),
    CaptionMetric("meteor", "METEOR without synonyms", _meteor),
    CaptionMetric("rouge_l", "ROUGE-L", _rouge),
    CaptionMetric("cider", "CIDEr-D", _cider),
)
