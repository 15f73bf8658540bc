"""An objective of a caller's own: its formula alone, and with the losses and the gradient of a tile."""

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
    """Asks positives for a score of 1 and all others for 0."""

    name = "squared_distance"

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        wanted = scores.positive.to(scores.score.dtype)
        return ((scores.score - wanted) ** 2).masked_fill(scores.dropped, 0.0).sum(1)


class SquaredDistanceOverPairs(SquaredDistance):
    """The same, tile by tile; it mines nothing, so that both directions are equal."""

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


def test_a_value_means_what_its_name_means():
    named = contrastive_loss(*leaves(), objective="mil_nce")
    assert torch.equal(contrastive_loss(*leaves(), objective=OBJECTIVES["mil_nce"]).loss, named.loss)


def test_a_formula_alone_is_evaluated_by_the_reference():
    image, text, scale = leaves()
    result = contrastive_loss(image, text, scale, objective=SquaredDistance(), backend="reference")
    expected = ((scale * image @ text.T - torch.eye(9)) ** 2).sum(1).mean()
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    assert image.grad is not None


def test_a_formula_alone_is_refused_by_the_chunked_backend_with_the_cure():
    with pytest.raises(NotSupportedError, match=r"'squared_distance'.*backend='reference'"):
        contrastive_loss(*leaves(), objective=SquaredDistance(), backend="chunked")


def test_a_sum_over_pairs_runs_tile_by_tile_as_its_formula_reads(monkeypatch: pytest.MonkeyPatch):
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


def test_an_objective_without_kernels_is_computed_without_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("emocap_kernels.contrastive.op.why_not_fused", lambda *_: None)
    image, text, _ = leaves()
    choice = choose_backend(image, text, objective=SquaredDistanceOverPairs())
    assert choice.backend == "chunked"
    assert "'squared_distance' has no fused kernels" in choice.reason
