"""Measures the image tower by its nearest neighbours: the class of an image is that of the most similar examples.

The neighbours are examples of the split `train`, by the cosine of the vectors before the projection. Each of the k
neighbours votes for its class with its cosine as the weight, or 0 if the cosine is negative. If two classes have equal
votes, the one with more neighbours wins, so a class without a neighbour never does. The number k is chosen on the split
`valid` by UAR.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float, Int

from emocap_pretrain.evaluation.classification import LabelledVectors, LearnsClasses, scored
from emocap_pretrain.evaluation.confusion import Confusion
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Score, TaskResult

if TYPE_CHECKING:
    from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True, slots=True)
class Nearest(LearnsClasses):
    """Implements the task `nearest_neighbours`. It needs the label in all three splits.

    The scores are UAR, WAR, macro-F1 and the chosen number of neighbours.
    """

    name: ClassVar[str] = "nearest_neighbours"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("uar",), ("war",), ("macro_f1",), ("neighbours",))
    about: ClassVar[str] = "takes the class of the most similar training images; UAR, WAR (needs a label)"

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - there are no prompts
        from sklearn.neighbors import NearestNeighbors

        train, valid, test = self.labelled(features)
        classes = test.rows.classes
        index = NearestNeighbors(n_neighbors=min(NEIGHBOURS[-1], len(train.truth)), metric="cosine", algorithm="brute")
        index.fit(train.vectors)
        votes = votes_of(index, train, valid.vectors)
        uars = {count: Confusion.of(classes, valid.truth, each).uar for count, each in votes.items()}
        chosen = max(uars, key=lambda count: (uars[count], count))
        predicted = votes_of(index, train, test.vectors, (chosen,))[chosen]
        result = scored(self.name, "nearest neighbours", test.rows, predicted)
        count = Score("neighbours", "nearest neighbours, chosen k", float(chosen), is_share=False)
        return replace(result, scores=(*result.scores, count))


def votes_of(
    index: "NearestNeighbors",
    train: LabelledVectors,
    vectors: Float[np.ndarray, "examples width"],
    counts: Sequence[int] = NEIGHBOURS,
) -> dict[int, Int[np.ndarray, " examples"]]:
    """Returns the predicted class of each vector, by the number of neighbours that vote.

    A number above that of the training examples is left out. If two classes have equal votes, the one with more
    neighbours wins, and of two with equally many neighbours the first one.
    """
    distances, rows = index.kneighbors(vectors)
    # The cosines, in descending order. A negative vote would make a class without neighbours win with 0.
    weights = np.maximum(1 - distances, 0)
    found: dict[int, Int[np.ndarray, " examples"]] = {}
    for count in counts:
        if count > rows.shape[1]:
            break
        votes = np.zeros((len(vectors), len(train.rows.classes)))
        places = np.arange(len(vectors))[:, None]
        np.add.at(votes, (places, train.truth[rows[:, :count]]), weights[:, :count])
        counts_of = np.zeros(votes.shape, dtype=np.int64)
        np.add.at(counts_of, (places, train.truth[rows[:, :count]]), 1)
        is_best = votes == votes.max(1, keepdims=True)
        found[count] = np.where(is_best, counts_of, -1).argmax(1)
    return found
