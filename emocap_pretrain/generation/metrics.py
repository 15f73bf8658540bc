"""Compares written captions with reference captions by BLEU, METEOR, ROUGE-L and CIDEr-D.

sacrebleu counts the n-grams for BLEU, nltk computes METEOR, and pycocoevalcap computes ROUGE-L and CIDEr-D. This module
keeps what each caption adds to the scores (`CaptionOutcomes`), from which `evaluation/corpus_scores.py` computes the
scores of all captions and of each draw of a bootstrap. BLEU is defined for a set of captions, so the n-gram counts of
the captions in a draw are added up. The other three scores are means over captions. CIDEr-D weighs n-grams by how rare
they are in the references (TF-IDF); these weights always come from the references of all images, and not from those of
a draw.

METEOR, ROUGE-L and CIDEr-D read the words of a text in lower case, without punctuation except for apostrophes within
words. The tools of COCO use a tokenizer in Java, which gives about the same words. METEOR matches equal words and equal
stems, but no synonyms, because WordNet, the dictionary of synonyms that nltk can read, comes with none of these
libraries.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.corpus_scores import BLEU
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes
from emocap_pretrain.run_folder.samples import answers_digest

_WORDS = re.compile(r"\w+(?:'\w+)*")
_LIBRARIES = {"sacrebleu": "sacrebleu", "nltk": "nltk", "pycocoevalcap": "pycocoevalcap"}


TITLES: Mapping[str, str] = {
    BLEU: "BLEU-4",
    "meteor": "METEOR without synonyms",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
}
"""The titles of the metrics by their names in files, which do not change between versions."""


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


def measured(written: Sequence[str], references: Sequence[Sequence[str]], keys: Sequence[str]) -> CaptionOutcomes:
    """Returns what each written caption adds to the scores (`TITLES`).

    Args:
        written: The written caption of each image.
        references: The references of each image.
        keys: A name of each image.
    """
    of_means = {"meteor": _meteor, "rouge_l": _rouge, "cider": _cider}
    return CaptionOutcomes(
        tuple(range(len(written))),
        _ngrams(written, references),
        tuple(of_means),
        tuple(tuple(map(float, measure(written, references))) for measure in of_means.values()),
        answers_digest(zip(keys, references, strict=True)),
    )


def _ngrams(written: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    from sacrebleu.metrics import bleu

    # The effective order changes the score of a sentence, and not its counts. Without it, sacrebleu prints a warning.
    metric = bleu.BLEU(lowercase=True, effective_order=True)
    rows = [metric.sentence_score(text, list(of)) for text, of in zip(written, references, strict=True)]
    counts = [(*row.counts, *row.totals, row.sys_len, row.ref_len) for row in rows]
    return tuple(tuple(map(int, column)) for column in zip(*counts, strict=True))


class _NoSynonyms:
    """Takes the place of the WordNet reader of nltk, and knows no synonyms of any word."""

    def synsets(self, word: str) -> list[Any]:  # noqa: ARG002 - the interface of nltk
        return []


def _meteor(written: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
    from nltk.translate.meteor_score import meteor_score

    none: Any = _NoSynonyms()
    pairs = zip(written, references, strict=True)
    return [meteor_score([words(each) for each in of], words(text), wordnet=none) for text, of in pairs]


def _rouge(written: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    pairs = zip(written, references, strict=True)
    return [rouge.calc_score([_spaced(text)], list(map(_spaced, of))) for text, of in pairs]


def _cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
    from pycocoevalcap.cider.cider import Cider

    found = {number: [_spaced(text)] for number, text in enumerate(written)}
    true = {number: list(map(_spaced, of)) for number, of in enumerate(references)}
    return list(Cider().compute_score(true, found)[1])


def _spaced(text: str) -> str:
    return " ".join(words(text))
