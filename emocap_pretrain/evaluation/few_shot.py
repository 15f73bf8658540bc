"""Measures the image tower with few labelled examples of each class: probes on 1, 2, 4, 8 and 16 of each.

The examples are drawn from the split `train`, and the regularization is chosen on equally few examples of the split
`valid`, because somebody who has four labelled faces of each class has no thousands to choose on. Each number of
examples is drawn several times, and the scores are the mean and the standard deviation over the draws.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from emocap_shards.inspecting.wording import counted
from jaxtyping import Int

from emocap_pretrain.evaluation.classification import LabelledRows, LearnsClasses
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.probe import fitted
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import ShotOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, Series, TaskResult
from emocap_pretrain.run_folder.samples import answers_digest

SHOTS = (1, 2, 4, 8, 16)
MOST_VALID_SHOTS = 4  # The protocol of CoOp: min(shots, 4) examples of each class to choose on.
DRAWS = 5


@dataclass(frozen=True, slots=True)
class FewShot(LearnsClasses):
    """Implements the task `few_shot`. Its scores are the mean and the deviation of UAR for each number of examples.

    The task needs the label in all three splits. A class without training examples is never predicted, so its recall is
    0. If the split `valid` lacks a class, the regularization is chosen by the other classes.
    """

    name: ClassVar[str] = "few_shot"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (
        tuple(f"uar_{shots}" for shots in SHOTS),
        tuple(f"uar_{shots}_deviation" for shots in SHOTS),
    )
    about: ClassVar[str] = f"trains probes on {', '.join(map(str, SHOTS))} examples of each class (needs a label)"

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - there are no prompts
        train, valid, test = self.labelled(features)
        scores: list[Score] = []
        right: list[tuple[int, ...]] = []
        chosen: list[tuple[str, ...]] = []
        for shots in SHOTS:
            found: list[Confusion] = []
            bits, digests = np.zeros(len(test.truth), dtype=np.int64), list[str]()
            for draw in range(DRAWS):
                # The random numbers depend on nothing else, so all models learn from the same examples.
                random = np.random.default_rng([shots, draw])
                some = drawn(train.truth, shots, random)
                to_choose = drawn(valid.truth, min(shots, MOST_VALID_SHOTS), random)
                probe = fitted(
                    (train.vectors[some], train.truth[some]), (valid.vectors[to_choose], valid.truth[to_choose])
                )
                predicted = probe.predicted(test.vectors)
                found.append(Confusion.of(test.rows.classes, test.truth, predicted))
                bits |= (predicted == test.truth).astype(np.int64) << draw
                learned = _learned("train", features["train"], train.rows, some)
                digests.append(answers_digest([*learned, *_learned("valid", features["valid"], valid.rows, to_choose)]))
            right.append(tuple(bits.tolist()))
            chosen.append(tuple(digests))
            uars = np.array([each.uar for each in found])
            title = f"few-shot UAR, {counted(shots, 'example')} a class"
            chance = Baseline("chance", found[0].chance, f"mean of {DRAWS} draws")
            scores += [
                Score(f"uar_{shots}", title, float(uars.mean()), chance),
                Score(f"uar_{shots}_deviation", f"{title}, deviation", float(uars.std(ddof=1))),
            ]
        values, deviations = (tuple(each.value for each in scores[place::2]) for place in (0, 1))
        chance = scores[0].baseline.value if scores[0].baseline else None
        series = Series("uar", "few-shot UAR", "examples of each class", SHOTS, values, deviations, chance)
        rows, truth = (tuple(each.tolist()) for each in (test.rows.rows, test.truth))
        outcomes = ShotOutcomes(rows, test.rows.classes, truth, SHOTS, DRAWS, tuple(right), tuple(chosen))
        return TaskResult(self.name, len(test.truth), tuple(scores), series=(series,), outcomes=(outcomes,))


def _learned(
    split: SplitName, features: Features, labelled: LabelledRows, some: Int[np.ndarray, " drawn"]
) -> Iterator[tuple[str, list[str]]]:
    """Yields each class of a split with the keys of the drawn examples of this class."""
    for number in np.unique(labelled.truth[some]):
        places = some[labelled.truth[some] == number]
        keys = [features.keys[row] for row in labelled.rows[places].tolist()]
        yield f"{split} {labelled.classes[number]}", keys


def drawn(truth: Int[np.ndarray, " examples"], shots: int, random: np.random.Generator) -> Int[np.ndarray, " drawn"]:
    """Returns the indices of `shots` random examples of each class, in ascending order, each example at most once.

    Of a class with fewer than `shots` examples, all examples are returned.
    """
    found: list[np.ndarray] = []
    for number in np.unique(truth):
        places = np.flatnonzero(truth == number)
        found.append(random.permutation(places)[:shots])
    return np.sort(np.concatenate(found))
