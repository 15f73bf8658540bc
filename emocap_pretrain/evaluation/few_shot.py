"""Measures the image tower with few labelled examples of each class: probes on 1, 2, 4, 8 and 16 of each.

The examples are drawn from the split `train`, and the regularization is chosen on equally few examples of the split
`valid`, because somebody who has four labelled faces of each class has no thousands to choose on. Each number of
examples is drawn several times, and the scores are the mean and the standard deviation over the draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.evaluation.classification import LabelledRows, check_labels, classes_of_features
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.probe import fitted
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

SHOTS = (1, 2, 4, 8, 16)
MOST_VALID_SHOTS = 4  # The protocol of CoOp: min(shots, 4) examples of each class to choose on.
DRAWS = 5


@dataclass(frozen=True, slots=True)
class FewShot:
    """Implements the task. It needs a label in all three splits.

    A class without training examples is never predicted, so its recall is 0. If the split `valid` lacks a class, the
    choice is made by the other classes.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "few_shot"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (
        tuple(f"uar_{shots}" for shots in SHOTS),
        tuple(f"uar_{shots}_deviation" for shots in SHOTS),
    )
    splits: ClassVar[tuple[SplitName, ...]] = ("train", "valid", "test")
    targets: ClassVar[tuple[TargetKind, ...]] = ("class",)
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = f"trains probes on {', '.join(map(str, SHOTS))} examples of each class (needs a label)"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:
        check_labels(self.settings, sources.values(), seconds)
        return ()

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - there are no prompts
        classes = tuple(classes_of_features(self.settings, features["train"]))
        train, valid, test = (LabelledRows.of(features[each], self.settings.label, classes) for each in self.splits)
        vectors = {
            split: found.pooled(features[split]) for split, found in zip(self.splits, (train, valid, test), strict=True)
        }
        scores: list[Score] = []
        for shots in SHOTS:
            found: list[Confusion] = []
            for draw in range(DRAWS):
                random = np.random.default_rng([shots, draw])
                some = drawn(train.truth, shots, random)
                to_choose = drawn(valid.truth, min(shots, MOST_VALID_SHOTS), random)
                probe = fitted(
                    (vectors["train"][some], train.truth[some]),
                    (vectors["valid"][to_choose], valid.truth[to_choose]),
                    classes,
                )
                found.append(Confusion.of(classes, test.truth, probe.predicted(vectors["test"])))
            uar = np.array([each.uar for each in found])
            each = "1 example" if shots == 1 else f"{shots} examples"
            chance = Baseline("chance", found[0].chance, f"{DRAWS} draws, standard deviation {uar.std(ddof=1):.1%}")
            scores += [
                Score(f"uar_{shots}", f"few-shot UAR, {each} a class", float(uar.mean()), chance),
                Score(f"uar_{shots}_deviation", f"few-shot UAR, {each} a class, deviation", float(uar.std(ddof=1))),
            ]
        return TaskResult(self.name, len(test.truth), tuple(scores))


def drawn(truth: Int[np.ndarray, " examples"], shots: int, random: np.random.Generator) -> Int[np.ndarray, " drawn"]:
    """Returns the places of `shots` examples of each class, drawn without replacement; of all if there are fewer."""
    found: list[np.ndarray] = []
    for number in np.unique(truth):
        places = np.flatnonzero(truth == number)
        found.append(random.permutation(places)[:shots])
    return np.sort(np.concatenate(found))
