"""An objective of the caller's own class: with only a formula, and with losses and gradient of a tile."""

from typing import get_args

import pytest
import torch
from emocap_kernels import choose_backend, contrastive_loss
from emocap_kernels.contrastive import chunked
from emocap_kernels.contrastive.objectives import (
    OBJECTIVES,
    ContrastiveObjective,
    DenseScores,
    ObjectiveName,
    Tile,
    objective_of,
)
from emocap_kernels.errors import NotSupportedError
from torch import Tensor
from torch.nn.functional import normalize


class SquaredDistance(ContrastiveObjective):
    """The squared distance of scores from 1 for positives and from 0 for others."""

    name = "squared_distance"

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        wanted = scores.positive.to(scores.score.dtype)
        return ((scores.score - wanted) ** 2).masked_fill(scores.dropped, 0.0).sum(1)


class SquaredDistanceOverPairs(SquaredDistance):
    """The same objective as a sum over pairs, without mining, so that both directions are equal."""

    def losses(self, tile: Tile) -> tuple[Tensor, Tensor]:
        positive, others = tile.targets.row_sums(tile.score), (tile.score**2).double().sum()
        loss = others - 2 * positive.double().sum() + tile.targets.row_counts().double().sum()
        return loss, loss

    def gradient(self, tile: Tile) -> Tensor:
        gradient = 4 * tile.score
        twice = tile.score.new_full((), 2.0)
        tile.targets.subtract_at_positives_(
            gradient, twice.expand(tile.score.shape[0]), twice.expand(tile.score.shape[1])
        )
        return gradient


def leaves() -> list[Tensor]:
    drawn = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, text = normalize(drawn, dim=-1).unbind()
    return [image.requires_grad_(), text.requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)]


def test_the_names_that_the_signature_allows_are_those_of_the_objectives():
    assert get_args(ObjectiveName) == tuple(OBJECTIVES)
    assert all(objective_of(name).name == name for name in get_args(ObjectiveName))


def test_an_object_gives_the_loss_of_its_name():
    named = contrastive_loss(*leaves(), objective="mil_nce")
    assert torch.equal(contrastive_loss(*leaves(), objective=OBJECTIVES["mil_nce"]).loss, named.loss)


def test_the_reference_evaluates_an_objective_with_only_a_formula():
    image, text, scale = leaves()
    result = contrastive_loss(image, text, scale, objective=SquaredDistance(), backend="reference")
    expected = ((scale * image @ text.T - torch.eye(9)) ** 2).sum(1).mean()
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    assert image.grad is not None


def test_the_chunked_backend_refuses_an_objective_with_only_a_formula():
    with pytest.raises(NotSupportedError, match=r"'squared_distance'.*backend='reference'"):
        contrastive_loss(*leaves(), objective=SquaredDistance(), backend="chunked")


def test_a_sum_over_pairs_computed_tile_by_tile_equals_its_formula(monkeypatch: pytest.MonkeyPatch):
    whole = chunked.evaluate
    monkeypatch.setattr(chunked, "evaluate", lambda batch: whole(batch, block_bytes=2 * 8 * 9))
    mine, theirs = leaves(), leaves()
    result = contrastive_loss(*mine, objective=SquaredDistanceOverPairs(), backend="chunked")
    expected = contrastive_loss(*theirs, objective=SquaredDistance(), backend="reference")
    torch.testing.assert_close(result.loss, expected.loss)
    result.loss.backward()
    expected.loss.backward()
    for found, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


def test_auto_is_chunked_for_an_objective_without_kernels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("emocap_kernels.contrastive.op.why_not_fused", lambda *_: None)
    image, text, _ = leaves()
    choice = choose_backend(image, text, objective=SquaredDistanceOverPairs())
    assert choice.backend == "chunked"
    assert "'squared_distance' has no fused kernels" in choice.reason
