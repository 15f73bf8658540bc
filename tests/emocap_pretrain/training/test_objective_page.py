"""Tests the code of docs/extend/objective.md: a run trains with its objective."""

import re
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from emocap_kernels import Mining, choose_backend, contrastive_loss
from emocap_kernels.contrastive import objectives
from emocap_kernels.contrastive.objectives import ContrastiveObjective, DenseScores, ObjectiveName
from emocap_kernels.errors import NotSupportedError
from engine_batches import VOCABULARY, batch_of
from pretrain_fakes import changed, stand_alone
from torch import Tensor
from torch.nn.functional import normalize

from emocap_pretrain.config.objective import Kind
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.plan import RunPlan
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_engine, build_model

PAGE = Path(__file__).parents[3] / "docs/extend/objective.md"
ALONE = RankGroup(Rank(), "cpu", None)


def snippets() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [textwrap.dedent(each) for each in found]


@pytest.fixture
def spectral() -> ContrastiveObjective:
    names: dict[str, Any] = {}
    exec(snippets()[0], names)
    return names["Spectral"]()


def leaves() -> list[Tensor]:
    drawn = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, text = normalize(drawn, dim=-1).unbind()
    return [image.requires_grad_(), text.requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("treatment", [None, "attract", "ignore"])
def test_the_tiles_of_the_page_give_the_loss_and_gradient_of_its_formula(
    spectral: ContrastiveObjective, treatment: Any
) -> None:
    mining = Mining(guide="counterpart", threshold=0.3, treatment=treatment) if treatment else None
    mine, theirs = leaves(), leaves()
    found = contrastive_loss(*mine, objective=spectral, mining=mining, backend="chunked")
    wanted = contrastive_loss(*theirs, objective=spectral, mining=mining, backend="reference")
    torch.testing.assert_close(found.loss, wanted.loss)
    found.loss.backward()
    wanted.loss.backward()
    for tile, formula in zip(mine, theirs, strict=True):
        torch.testing.assert_close(tile.grad, formula.grad)


def test_the_formula_of_the_page_is_the_published_one(spectral: ContrastiveObjective) -> None:
    image, text, scale = leaves()
    score = scale * image @ text.T
    expected = (score**2).sum(1).mean() - 2 * score.diagonal().mean()
    torch.testing.assert_close(contrastive_loss(image, text, scale, objective=spectral).loss, expected)


def test_the_lists_of_names_are_those_of_the_page() -> None:
    names = re.findall(r'"(\w+)"', snippets()[1])
    assert names == [*(name for name in get_args(ObjectiveName) if name in names), "spectral"]
    assert get_args(Kind) == get_args(ObjectiveName)


def test_a_run_trains_with_the_objective_of_the_page(
    tiny_config: Config, spectral: ContrastiveObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_alone()
    monkeypatch.setitem(objectives.OBJECTIVES, "spectral", spectral)
    config = changed(tiny_config, steps=8, model__initial_scale=2.0)
    objective = config.objective.model_copy(update={"kind": "spectral"})  # The schema does not have the name yet.
    config = config.model_copy(update={"objective": objective})
    torch.manual_seed(0)
    engine = build_engine(config, build_model(config, VOCABULARY), ALONE)
    batch = batch_of(config, 0, range(config.global_batch))
    losses = [float(engine.train(batch)["summary/loss"]) for _ in range(config.steps)]
    assert losses[-1] < losses[0]
    assert "chunked" in RunPlan.of(config, 1, on_gpu=False).text()
    image, text, _ = leaves()
    assert choose_backend(image, text, objective=spectral).backend == "chunked"


class FormulaAlone(ContrastiveObjective):
    """The objective of the page, without the methods for tiles."""

    name = "formula_alone"

    def anchor_losses(self, scores: DenseScores) -> Tensor:
        return scores.score.square().mean(1) - 2 * scores.score.where(scores.positive, 0.0).sum(1)


def test_an_objective_with_a_formula_alone_runs_by_the_reference(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_alone()
    image, text, scale = leaves()
    choice = choose_backend(image, text, objective=FormulaAlone())
    assert (choice.backend, choice.reason) == ("reference", "the objective 'formula_alone' has only a formula.")
    with pytest.raises(NotSupportedError, match="backend='chunked' cannot run the objective 'formula_alone'"):
        choose_backend(image, text, objective=FormulaAlone(), backend="chunked")
    contrastive_loss(image, text, scale, objective=FormulaAlone()).loss.backward()
    assert image.grad is not None
    monkeypatch.setitem(objectives.OBJECTIVES, "formula_alone", FormulaAlone())
    objective = tiny_config.objective.model_copy(update={"kind": "formula_alone"})
    config = tiny_config.model_copy(update={"objective": objective})
    engine = build_engine(config, build_model(config, VOCABULARY), ALONE)
    assert engine.train(batch_of(config, 0, range(config.global_batch)))["skipped"] == 0.0
    assert "reference" in RunPlan.of(config, 1, on_gpu=False).text()
    chunked = objective.model_copy(update={"backend": "chunked"})
    with pytest.raises(ConfigError, match=r"objective\.backend: backend='chunked' cannot run"):
        RunPlan.of(config.model_copy(update={"objective": chunked}), 1, on_gpu=False).text()
