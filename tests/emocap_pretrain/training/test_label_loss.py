"""Tests the losses of labels against formulas in float64, on several ranks, in several passes, and in the engine."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from emocap_shards.sample import Caption, Sample
from engine_batches import VOCABULARY, batch_of, rows_of
from gloo_ranks import on_gloo
from pretrain_fakes import changed, stand_alone
from torch import Tensor
from torch.nn.functional import cross_entropy

from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.labels import label_targets
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.label_loss import class_weights, label_results, label_terms

ALONE = RankGroup(Rank(), "cpu", None)
CLASSES = ("anger", "fear", "joy")
COUNTS = {"emotion": (50.0, 5.0, 400.0)}
ROWS = 12
OFF = {"objective__global": 0.0, "objective__summary": 0.0, "objective__local": 0.0}
LABELS: list[dict[str, Any]] = [
    {"name": "emotion", "classes": CLASSES, "balance": "inverse", "smoothing": 0.1, "weight": 0.5},
    {"name": "valence", "weight": 2.0},
    {"name": "arousal", "loss": "mse"},
]
SETTINGS = tuple(LabelConfig.model_validate(each) for each in LABELS)


def head_outputs(rows: range) -> dict[str, Tensor]:
    """Returns the head's outputs of each label for some rows of a batch of 12, as leaf tensors with gradients.

    All calls take them from the same batch.
    """
    random = torch.Generator().manual_seed(3)
    whole = {"emotion": 3 * torch.randn(ROWS, 3, generator=random)}
    whole |= {name: 0.3 + torch.randn(ROWS, 1, generator=random) for name in ("valence", "arousal")}
    return {name: each[rows.start : rows.stop].clone().requires_grad_() for name, each in whole.items()}


def targets(rows: range) -> dict[str, Tensor]:
    """Returns the targets of each label for some rows of the batch of 12. A few rows have no target."""
    classes = torch.tensor([0, 2, 2, -1, 1, 2, 0, 2, -1, 2, 2, 2])
    numbers = torch.linspace(-0.9, 0.7, ROWS)
    numbers[[2, 7]] = math.nan
    whole = {"emotion": classes, "valence": numbers, "arousal": numbers.flip(0)}
    return {name: each[rows.start : rows.stop] for name, each in whole.items()}


def losses_and_gradients(world: RankGroup, edges: list[int]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns the losses of the labels, and the gradients of their sum with respect to the outputs of this rank's rows.

    Rank i has the rows from `edges[i]` up to and without `edges[i + 1]`.
    """
    rows = range(*list(pairwise(edges))[world.rank])
    outputs = head_outputs(rows)
    found = label_results(label_terms(SETTINGS, COUNTS), outputs, targets(rows), world.process_group)
    torch.stack([each.loss for each in found]).sum().backward()
    gradients = {name: each.grad for name, each in outputs.items() if each.grad is not None}
    return [each.loss.detach() for each in found], gradients


def truth() -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns the losses of the whole batch by their formulas in float64, and the gradients of their sum."""
    outputs = {name: each.detach().double().requires_grad_() for name, each in head_outputs(range(ROWS)).items()}
    given = targets(range(ROWS))
    inverse = torch.tensor([1 / count for count in COUNTS["emotion"]], dtype=torch.float64)
    losses = [cross_entropy(outputs["emotion"], given["emotion"], inverse, ignore_index=-1, label_smoothing=0.1)]
    known = ~given["valence"].isnan()
    p, y = outputs["valence"][known, 0], given["valence"][known].double()
    covariance = ((p - p.mean()) * (y - y.mean())).mean()
    losses.append(1 - 2 * covariance / (p.var(correction=0) + y.var(correction=0) + (p.mean() - y.mean()) ** 2))
    known = ~given["arousal"].isnan()
    losses.append((outputs["arousal"][known, 0] - given["arousal"][known].double()).square().mean())
    torch.stack(losses).sum().backward()
    return [each.detach() for each in losses], {name: each.grad for name, each in outputs.items()}  # pyright: ignore[reportReturnType]


def test_losses_and_gradients_are_those_of_the_formulas() -> None:
    (losses, gradients), (expected, slopes) = losses_and_gradients(ALONE, [0, ROWS]), truth()
    for loss, wanted in zip(losses, expected, strict=True):
        assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    for name, slope in slopes.items():
        torch.testing.assert_close(gradients[name].double(), slope, rtol=1e-5, atol=1e-7)


# The third rank has no rows, and the second one has the missing class alone.
@pytest.mark.parametrize("edges", [[0, 5, ROWS], [0, 8, 9, 9, ROWS]])
def test_any_rows_on_any_number_of_ranks_have_the_losses_and_the_gradient_of_one_rank(edges: list[int]) -> None:
    ranks = len(edges) - 1
    found = on_gloo(ranks, losses_and_gradients, edges)
    expected, slopes = losses_and_gradients(ALONE, [0, ROWS])
    for losses, _ in found:
        assert all(torch.equal(loss, other) for loss, other in zip(losses, found[0][0], strict=True))
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-7)
    for name, slope in slopes.items():
        # The engine takes the mean of the gradients over the ranks.
        whole = torch.cat([gradients[name] for _, gradients in found]) / ranks
        torch.testing.assert_close(whole, slope, rtol=1e-5, atol=1e-8)


def test_a_batch_without_targets_or_rows_has_no_loss_and_no_gradient() -> None:
    for rows in (ROWS, 0):
        given = {"emotion": torch.full((rows,), -1)}
        given |= dict.fromkeys(("valence", "arousal"), torch.full((rows,), math.nan))
        outputs = head_outputs(range(rows))
        found = label_results(label_terms(SETTINGS, COUNTS), outputs, given, None)
        torch.stack([each.loss for each in found]).sum().backward()
        assert [each.loss.item() for each in found] == [0.0, 0.0, 0.0]
        assert all(each.grad is not None and not each.grad.any() for each in outputs.values())
        assert all(float(each.metrics["labelled"]) == 0 for each in found)


def test_a_head_of_zeros_has_a_finite_gradient_of_its_ccc() -> None:
    outputs = {name: torch.zeros_like(each).requires_grad_() for name, each in head_outputs(range(ROWS)).items()}
    (result,) = label_results(label_terms(SETTINGS[1:2], {}), outputs, targets(range(ROWS)), None)
    result.loss.backward()
    assert result.loss.item() == 1.0
    slope = outputs["valence"].grad
    assert slope is not None
    assert slope.isfinite().all()
    assert slope.any()


def test_metrics_count_labelled_rows_and_those_that_are_right() -> None:
    outputs, given = head_outputs(range(ROWS)), targets(range(ROWS))
    emotion, valence, _ = label_results(label_terms(SETTINGS, COUNTS), outputs, given, None)
    known = given["emotion"] >= 0
    right = (outputs["emotion"].argmax(1) == given["emotion"])[known]
    assert float(emotion.metrics["accuracy"]) == pytest.approx(float(right.float().mean()))
    assert (float(emotion.metrics["labelled"]), float(valence.metrics["labelled"])) == (10, 10)
    assert float(valence.metrics["ccc"]) == pytest.approx(1 - valence.loss.item())


def test_weights_of_classes_lie_between_none_and_inverse() -> None:
    def weights(**changes: Any) -> tuple[float, ...] | None:
        return class_weights(SETTINGS[0].model_copy(update=changes), COUNTS["emotion"])

    inverse = weights(balance="inverse")
    assert inverse is not None
    assert inverse[1] / inverse[0] == pytest.approx(10)
    assert sum(inverse) == pytest.approx(3)
    assert weights(balance="none") is None
    assert weights(balance="effective", beta=0.0) == pytest.approx((1, 1, 1))
    assert weights(balance="effective", beta=1 - 1e-9) == pytest.approx(inverse, rel=1e-4)
    effective = weights(balance="effective", beta=0.99)
    assert effective is not None
    assert effective[1] / effective[0] == pytest.approx((1 - 0.99**50) / (1 - 0.99**5))


def sample(**labels: str | float) -> Sample:
    return Sample(0, "face-7", torch.zeros(2, 2, 3, dtype=torch.uint8).numpy(), Caption("A face.", (), ""), labels)


def test_targets_are_numbers_of_classes_and_missing_ones_are_marked() -> None:
    samples = [sample(emotion="joy"), sample(emotion=""), sample(valence=0.5), sample(emotion="anger")]
    assert label_targets(SETTINGS[0], samples).tolist() == [2, -1, -1, 0]
    numbers = label_targets(SETTINGS[1], samples)
    assert numbers.dtype == torch.float32
    assert numbers.isnan().tolist() == [True, True, False, True]
    digits = LabelConfig.model_validate({"name": "emotion", "classes": [0, 1]})
    assert label_targets(digits, [sample(emotion=1.0), sample(emotion="0")]).tolist() == [1, 0]
    # No sample at all, as in the last step of an epoch.
    assert label_targets(SETTINGS[0], []).dtype == torch.int64


# The engine: the same batches with labels on each row.


def stepped(world: RankGroup, config: Config, stage: int) -> list[tuple[float, float]]:
    """Trains three steps at a stage of ZeRO, and returns (loss, gradient norm) of each step."""
    torch.manual_seed(0)
    config = changed(config, engine__zero_stage=stage)
    engine = build_engine(config, build_model(config, VOCABULARY), world, class_counts=COUNTS)
    rows = rows_of(world.rank, world.world_size, ROWS)
    found: list[tuple[float, float]] = []
    for step in range(3):
        batch = batch_of(config, step, rows)
        texts = batch.texts if config.objective.local else {}
        made = engine.train(Batch(batch.images, texts, targets(rows)))
        found.append((float(made["loss"]), float(made["gradient_norm"])))
    return found


def assert_equal(rows: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    """Checks that the losses and gradient norms of all steps are close to the expected ones.

    The tolerance of the norms is larger, because Adam enlarges the rounding errors of gradients that are almost zero.
    """
    for (loss, norm), (wanted, length) in zip(rows, expected, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-4)
        assert norm == pytest.approx(length, rel=5e-3)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return changed(tiny_config, global_batch=ROWS, steps=3, objective__labels=LABELS, optimizer__lr=1e-2)


def test_steps_with_labels_are_equal_at_every_stage_in_passes_and_on_two_ranks(config: Config) -> None:
    stand_alone()
    for changes in ({}, OFF):
        ours = changed(config, **changes)
        expected = stepped(ALONE, ours, 0)
        assert expected[-1][0] < expected[0][0]
        for stage in (1, 3):
            assert_equal(stepped(ALONE, ours, stage), expected)
        assert_equal(stepped(ALONE, changed(ours, micro_batch=5), 1), expected)
        for rows in on_gloo(2, stepped, ours, 2):
            assert_equal(rows, expected)


def test_without_captions_only_the_image_tower_and_the_head_are_trained(config: Config) -> None:
    model = build_model(changed(config, **OFF), VOCABULARY)
    trained = {name.partition(".")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {"image", "head"}
    both = build_model(config, VOCABULARY)
    assert all(each.requires_grad for each in both.parameters())
    assert "head.weight" not in build_model(changed(config, objective__labels=[]), VOCABULARY).state_dict()
