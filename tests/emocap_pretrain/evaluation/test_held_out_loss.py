"""Tests the loss on held-out captions against the formula of docs/method.md, written with loops in float64."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.features import Features, PartFeatures
from emocap_pretrain.evaluation.held_out_loss import INCOMPLETE, NO_CAPTION, HeldOutLoss
from emocap_pretrain.evaluation.loss_values import LossValues
from emocap_pretrain.evaluation.outcome_scores import metrics_of
from emocap_pretrain.run_folder.outcome_sums import LossOutcomes
from emocap_pretrain.run_folder.results import TaskResult

SCALE, WIDTH = 14.3, 5


def direction(scores: np.ndarray, ids: Sequence[str]) -> float:
    """Returns the mean loss of the anchors, which are the rows of `scores`."""
    total = 0.0
    for row, own in enumerate(ids):
        positives = [column for column, other in enumerate(ids) if other == own]
        total += math.log(sum(math.exp(each) for each in scores[row])) - scores[row, positives].mean()
    return total / len(ids)


def formula(images: np.ndarray, texts: np.ndarray, ids: Sequence[str]) -> float:
    scores = SCALE * images @ texts.T
    return (direction(scores, ids) + direction(scores.T, ids)) / 2


class LetterTokenizer:
    """Takes each letter as a token."""

    def encode(self, texts: Sequence[str], length: int) -> Texts:
        rows = [[ord(letter) for letter in text[:length]] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return Texts(ids, ids > 0)


class FakeEmbedder:
    """Cuts texts after 20 letters; the vector of a text that it encodes depends on the text alone."""

    model = SimpleNamespace(scale=SCALE)
    tokenizer = LetterTokenizer()

    def __init__(self, objective: ObjectiveConfig | None) -> None:
        self.objective = objective

    def length_of(self, part: Part) -> int:  # noqa: ARG002 - all parts have one length
        return 20

    def texts_of(self, part: Part, texts: Sequence[str]) -> torch.Tensor:
        assert part.name == "summary"
        return torch.stack([encoded(text) for text in texts])


def encoded(text: str) -> torch.Tensor:
    return normalize(torch.tensor([float(ord(text[-1]) % each) for each in (2, 3, 5, 7, 11)]), dim=0)


def random_vectors(rows: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def part_of(owner: Sequence[int], texts: Sequence[str], seed: int) -> PartFeatures:
    return PartFeatures(tuple(texts), random_vectors(len(texts), seed), torch.tensor(owner), torch.arange(len(texts)))


def features_of(images: int, **parts: PartFeatures) -> Features:
    vectors = random_vectors(images, 0)
    return Features(tuple(map(str, range(images))), vectors, vectors, ({},) * images, parts={**parts})


def result_of(features: Features, *, batch: int = 4, objective: ObjectiveConfig | None = None) -> TaskResult:
    embedder: Any = FakeEmbedder(objective)
    return HeldOutLoss(EvaluationConfig(url="faces", loss_batch=batch)).result(embedder, {"test": features})


def values(result: TaskResult) -> dict[str, float]:
    return {score.name: score.value for score in result.scores}


# The face 2 has no caption, the face 5 has two, and the last two captions differ only where they are cut.
OWNERS = [0, 1, 3, 4, 5, 5, 6, 7, 8]
CAPTIONS = ["a", "b", "a", "c", "d", "a", "a long caption of more", "a long caption of more letters", "e"]
FIRST = [0, 1, 2, 3, 4, 6, 7, 8]  # The place of the first caption of each face with one.


def test_each_loss_is_the_mean_over_batches_of_the_formula_with_equal_captions_as_positives() -> None:
    found = result_of(features_of(9, **{"global": part_of(OWNERS, CAPTIONS, 1)}), batch=4)
    images, texts = random_vectors(9, 0).double().numpy(), random_vectors(9, 1).double().numpy()
    owners = [OWNERS[place] for place in FIRST]
    ids = [CAPTIONS[place][:20] for place in FIRST]
    assert ids[5] == ids[6]
    wanted = np.mean(
        [formula(images[owners[at : at + 4]], texts[FIRST[at : at + 4]], ids[at : at + 4]) for at in (0, 4)]
    )
    assert values(found) == pytest.approx({"loss": wanted, "loss_global": wanted}, abs=1e-12)
    assert (found.samples, found.left_out) == (8, ((NO_CAPTION, 1),))
    total, part = found.scores
    assert part.title == "held-out loss of the global part, batches of 4"
    assert part.text() == f"{wanted:.4g}  (knows nothing 1.386)"
    assert not total.is_share
    (outcomes,) = found.outcomes
    assert isinstance(outcomes, LossOutcomes)
    assert (outcomes.rows, outcomes.parts, outcomes.weights) == (tuple(owners), ("global",), (1.0,))
    again = {name: float(metric(np.ones((1, 8)))[0]) for name, metric in metrics_of(outcomes).items()}
    assert again == pytest.approx(values(found), abs=1e-12)


def test_the_local_part_is_added_with_its_weight_and_its_own_baseline() -> None:
    features = replace(features_of(9, **{"global": part_of(OWNERS, CAPTIONS, 1)}), local_loss=LossValues(2.5, 3.0))
    objective = ObjectiveConfig.model_validate({"global": 0.5, "local": 2.0})
    found = result_of(features, objective=objective)
    scores = values(found)
    assert scores["loss_local"] == 2.5
    assert scores["loss"] == pytest.approx(0.5 * scores["loss_global"] + 2.0 * 2.5)
    assert [score.baseline and score.baseline.value for score in found.scores] == pytest.approx(
        [0.5 * math.log(4) + 6.0, math.log(4), 3.0]
    )
    with pytest.raises(DataError, match=r"the local loss on .*faces is nan; the weights may be damaged"):
        result_of(replace(features, local_loss=LossValues(math.nan, 3.0)))


def test_the_texts_the_positives_and_the_batches_decide_whether_two_losses_are_comparable() -> None:
    def about(features: Features, **changes: Any) -> tuple[str, ...]:
        (outcomes,) = result_of(features, **changes).outcomes
        assert isinstance(outcomes, LossOutcomes)
        return outcomes.about

    features = features_of(9, **{"global": part_of(OWNERS, CAPTIONS, 1)})
    first = about(features)
    # Other vectors are another model on the same texts.
    assert about(features_of(9, **{"global": part_of(OWNERS, CAPTIONS, 7)})) == first
    assert about(features, batch=8) != first
    assert about(features, objective=ObjectiveConfig.model_validate({"known_positives": False})) != first
    assert about(features_of(9, **{"global": part_of(OWNERS, ["z", *CAPTIONS[1:]], 1)})) != first
    # A local part of fewer faces is left out of the values, and so is the total.
    local = LossValues(2.5, 3.0, (0, 1), (2.0, 3.0), "x")
    (outcomes,) = result_of(replace(features, local_loss=local)).outcomes
    assert isinstance(outcomes, LossOutcomes)
    assert (outcomes.parts, outcomes.weights) == (("global",), ())


def test_the_last_incomplete_batch_is_left_out_and_a_small_dataset_is_one_batch() -> None:
    features = features_of(9, **{"global": part_of(OWNERS, CAPTIONS, 1)})
    found = result_of(features, batch=3)
    assert (found.samples, found.left_out) == (6, ((NO_CAPTION, 1), (INCOMPLETE, 2)))
    small = result_of(features, batch=100)
    assert (small.samples, small.left_out) == (8, ((NO_CAPTION, 1),))
    assert small.scores[0].title.endswith("batches of 8")
    with pytest.raises(ConfigError, match="fewer than two samples with captions"):
        result_of(features_of(9, **{"global": part_of([3], ["a"], 1)}))
    with pytest.raises(ConfigError, match=r"held_out_loss needs captions, and .*faces has none"):
        result_of(features_of(9))


def test_the_global_sentence_replaces_a_missing_summary_and_the_total_has_the_weights_of_the_run() -> None:
    parts = {"global": part_of([0, 1, 2], ["a", "b", "c"], 1), "summary": part_of([0, 2], ["x", "x"], 2)}
    features = features_of(3, **parts)
    images, summaries = random_vectors(3, 0).double().numpy(), random_vectors(2, 2)
    texts = torch.stack([summaries[0], encoded("b"), summaries[1]]).double().numpy()
    summary = formula(images, texts, ["x", "b", "x"])
    first = formula(images, random_vectors(3, 1).double().numpy(), ["a", "b", "c"])
    losses = {"loss_global": first, "loss_summary": summary}
    assert values(result_of(features)) == pytest.approx({"loss": (first + summary) / 2, **losses})
    weighted = ObjectiveConfig.model_validate({"global": 0.25, "summary": 2.0})
    assert values(result_of(features, objective=weighted)) == pytest.approx(
        {"loss": 0.25 * first + 2 * summary, **losses}
    )
    baseline = result_of(features, objective=weighted).scores[0].baseline
    assert baseline
    assert baseline.value == pytest.approx(2.25 * math.log(3))
    unknown = ObjectiveConfig.model_validate({"known_positives": False})
    apart = formula(images, texts, ["x", "b", "another x"])
    assert values(result_of(features, objective=unknown))["loss_summary"] == pytest.approx(apart)


def test_a_model_that_gives_all_pairs_one_score_has_the_loss_of_the_baseline() -> None:
    features = features_of(8, **{"global": part_of(range(8), "abcdefgh", 1)})
    same = replace(features, images=features.images[:1].expand(8, -1))
    texts = replace(features.parts["global"], vectors=features.parts["global"].vectors[:1].expand(8, -1))
    found = result_of(replace(same, parts={"global": texts}), batch=8)
    for score in found.scores:
        assert score.baseline
        assert score.value == pytest.approx(score.baseline.value, abs=1e-12)


def test_vectors_that_are_not_finite_end_with_a_line_that_names_the_part() -> None:
    features = features_of(4, **{"global": part_of(range(4), "abcd", 1)})
    features.parts["global"].vectors[2] = math.nan
    with pytest.raises(DataError, match=r"the global loss on .*faces is nan; the weights may be damaged"):
        result_of(features)
