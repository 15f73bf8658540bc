"""Tests that the score of each metric is that of its library to 1e-6, for all captions and for draws of a bootstrap."""

from itertools import zip_longest

import numpy as np
import pytest
from nltk.translate.meteor_score import meteor_score
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sacrebleu import corpus_bleu

from emocap_pretrain.captions.rendered.captioner import caption
from emocap_pretrain.captions.rendered.dataset import sample_face
from emocap_pretrain.evaluation.outcome_scores import metrics_of
from emocap_pretrain.generation.metrics import TITLES, measured, words

TEXTS = [caption(sample_face(3, index)).summary for index in range(30)]
WRITTEN = [f"{text.split(',')[0]}, and Nothing else." for text in TEXTS[1:16]]
# The first image has a second reference, as some datasets have.
REFERENCES = [[TEXTS[0], TEXTS[20]], *([text] for text in TEXTS[1:15])]
LIBRARY = {
    "bleu": lambda written, references: (
        corpus_bleu(written, list(zip_longest(*references)), lowercase=True).score / 100
    ),
    "meteor": lambda written, references: np.mean(
        [
            meteor_score([words(each) for each in of], words(text), wordnet=NoWordNet())
            for text, of in zip(written, references, strict=True)
        ]
    ),
    "rouge_l": lambda written, references: Rouge().compute_score(*coco(written, references))[0],
    "cider": lambda written, references: Cider().compute_score(*coco(written, references))[0],
}


class NoWordNet:
    def synsets(self, _word):
        return []


def coco(written, references):
    """Returns the references and the captions in the form that pycocoevalcap expects: lists of texts by image."""
    true = {number: [" ".join(words(each)) for each in of] for number, of in enumerate(references)}
    return true, {number: [" ".join(words(text))] for number, text in enumerate(written)}


def scores_of(written, references):
    """Returns the functions that compute the scores, and the scores of all captions."""
    metrics = metrics_of(measured(written, references, list(map(str, range(len(written))))))
    return metrics, {name: float(metric(np.ones((1, len(written))))[0]) for name, metric in metrics.items()}


@pytest.mark.parametrize("name", TITLES)
def test_a_metric_equals_its_library(name):
    metrics, scores = scores_of(WRITTEN, REFERENCES)
    assert scores[name] == pytest.approx(LIBRARY[name](WRITTEN, REFERENCES), abs=1e-6)
    assert 0 < scores[name] < 10
    weights = np.random.default_rng(0).integers(0, 3, (4, len(WRITTEN))).astype(float)
    weights[0] = 1
    draws = metrics[name](weights)
    assert draws[0] == pytest.approx(scores[name], abs=1e-12)
    if name != "cider":  # Its rarity of words is that in all references, and not that in a draw.
        rows = np.repeat(np.arange(len(WRITTEN)), weights[1].astype(int))
        drawn = [WRITTEN[row] for row in rows], [REFERENCES[row] for row in rows]
        assert draws[1] == pytest.approx(LIBRARY[name](*drawn), abs=1e-6)


def test_equal_captions_score_highest_and_empty_ones_zero():
    references = [[text] for text in TEXTS[:5]]
    _, equal = scores_of(TEXTS[:5], references)
    assert equal == pytest.approx({"bleu": 1, "meteor": 1, "rouge_l": 1, "cider": 10}, abs=0.001)
    assert set(scores_of([""] * 5, references)[1].values()) == {0}


def test_words_are_lower_case_without_punctuation():
    assert words("The brow is FURROWED; it's a half-smile.") == [
        "the",
        "brow",
        "is",
        "furrowed",
        "it's",
        "a",
        "half",
        "smile",
    ]
