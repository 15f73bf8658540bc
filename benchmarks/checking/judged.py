"""Judges written sentences with the agreement check, and records how often the check is right.

The score of a sentence is the lowest score of its claims: a sentence is false if one of its claims is. A sentence has
no score (the check abstains) if no claim of it was found, or if no claim could be judged on the face.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from emocap_shards.sample import Caption
from jaxtyping import Float

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.rounds import Skipped
from emocap_pretrain.checking.agreement import AGREES, AgreementCheck
from emocap_pretrain.checking.check import CaptionedFace
from emocap_pretrain.checking.claims import find_claims
from emocap_pretrain.evaluation.intervals import Metric, Weights, areas, bootstrap

from .falsifier import WrittenClaim

CHECK = "agreement"
LOW = 0.2
"""A filter that must keep true sentences would remove those with a score below this one."""


@dataclass(frozen=True, slots=True)
class JudgedSentence:
    """Holds a sentence with a known truth, and what the check says of it.

    Attributes:
        written: The sentence.
        score: Its score; None if the check abstains.
        has_claim: Whether the check found a claim in it.
    """

    written: WrittenClaim
    score: float | None
    has_claim: bool


def judged_sentences(
    written: Sequence[WrittenClaim], landmarks: Float[np.ndarray, "478 3"] | None, check: AgreementCheck
) -> Iterator[JudgedSentence]:
    """Yields the sentences about one face with their scores. Without landmarks the check abstains on all of them."""
    caption = Caption("", tuple(each.text for each in written), "")
    scores: list[list[float]] = [[] for _ in written]
    for finding in check.findings(CaptionedFace(key="", captions=[caption], landmarks=landmarks)):
        if finding.sentence is not None and finding.score is not None:
            scores[finding.sentence].append(finding.score)
    for each, found in zip(written, scores, strict=True):
        yield JudgedSentence(each, min(found, default=None), bool(find_claims(each.text)))


def grouped_sentences(
    sentences: Sequence[JudgedSentence], key: Callable[[JudgedSentence], Hashable]
) -> dict[Any, list[JudgedSentence]]:
    """Returns the sentences by the value of `key`, in the order in which the values first occur."""
    groups: dict[Any, list[JudgedSentence]] = {}
    for each in sentences:
        groups.setdefault(key(each), []).append(each)
    return groups


def share_below(
    about: Occasion, what: str, setting: Mapping[str, Any], sentences: Sequence[JudgedSentence]
) -> Measurement:
    """Returns the record of the share of the judged sentences whose score is below `AGREES`.

    `more` has the numbers of sentences and of faces, the shares of all sentences on which the check abstains and in
    which it found no claim, the share of the judged ones with a score below `LOW`, and the 95 % bootstrap interval of
    the recorded share over faces.
    """
    judged = [each for each in sentences if each.score is not None]
    scores = np.array([each.score for each in judged], np.float64)
    one = np.ones(len(judged))
    return measured(
        about,
        [_rounded(np.mean(scores < AGREES))] if judged else Skipped("the check abstains on all sentences"),
        what=what,
        contender=CHECK,
        setting=setting,
        unit="share",
        more={
            **_size(sentences),
            "without_claim": _rounded(np.mean([not each.has_claim for each in sentences])),
            "below_0.2": _rounded(np.mean(scores < LOW)) if judged else None,
            "interval": _interval(_ratio((scores < AGREES) * one, one), judged),
        },
        versions=versions(("numpy",)),
    )


def found_false(
    about: Occasion, what: str, setting: Mapping[str, Any], sentences: Sequence[JudgedSentence]
) -> Measurement:
    """Returns the record of how well a score below `AGREES` finds the false sentences.

    The value is the precision: the share of false sentences among those with such a score. `more` has the recall (the
    share of all false sentences that have such a score; one without a score is missed), the recall among judged
    sentences, the area under the ROC curve of the score, and 95 % bootstrap intervals over faces. A value that does not
    exist, such as an area without true sentences, is None.
    """
    is_false = np.array([not each.written.is_true for each in sentences])
    below = np.array([each.score is not None and each.score < AGREES for each in sentences])
    has_score = np.array([each.score is not None for each in sentences])
    judged = [each for each in sentences if each.score is not None]
    area = areas(
        np.array([each.written.is_true for each in judged], bool), np.array([each.score for each in judged], np.float64)
    )
    metrics: Mapping[str, tuple[Metric, Sequence[JudgedSentence]]] = {
        "precision": (_ratio(below & is_false, below), sentences),
        "recall": (_ratio(below & is_false, is_false), sentences),
        "recall_of_judged": (_ratio(below & is_false, is_false & has_score), sentences),
        **({"auc": (area, judged)} if judged else {}),
    }
    values = {name: _value(metric, len(of)) for name, (metric, of) in metrics.items()}
    precision = values.pop("precision")
    return measured(
        about,
        Skipped("no sentence has a score below 0.5") if precision is None else [precision],
        what=what,
        contender=CHECK,
        setting=setting,
        unit="precision",
        more={
            **_size(sentences),
            "false": _rounded(np.mean(is_false)),
            **values,
            **{f"{name}_interval": _interval(metric, of) for name, (metric, of) in metrics.items()},
        },
        versions=versions(("numpy",)),
    )


def _size(sentences: Sequence[JudgedSentence]) -> dict[str, Any]:
    return {
        "sentences": len(sentences),
        "faces": len({each.written.key for each in sentences}),
        "abstained": _rounded(np.mean([each.score is None for each in sentences])),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Metric:
    """Returns a function that divides two sums over the sentences of each draw; NaN if the second one is 0."""

    def scores(weights: Weights) -> Float[np.ndarray, " draws"]:
        with np.errstate(invalid="ignore"):
            return (weights @ numerator) / (weights @ denominator)

    return scores


def _value(metric: Metric, count: int) -> float | None:
    value = float(metric(np.ones((1, count)))[0])
    return _rounded(value) if np.isfinite(value) else None


def _interval(metric: Metric, sentences: Sequence[JudgedSentence]) -> list[float] | None:
    if not sentences:
        return None
    low, high = bootstrap(metric, [each.written.key for each in sentences])
    return [_rounded(low), _rounded(high)] if np.isfinite(low) else None


def _rounded(share: Any) -> float:
    return round(float(share), 4)
