"""Tests the code of docs/extend/tower.md: a model with its tower trains."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_fakes import changed, stand_alone

from emocap_pretrain.config.schema import Config
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.towers import ImageTower, TextTower
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_engine

HERE = Path(__file__)
PAGE = HERE.parents[3] / "docs" / "extend" / "tower.md"
sys.path.insert(0, str(HERE.parents[1] / "training"))
from engine_batches import batch_of  # noqa: E402


@pytest.fixture
def model() -> TowerPair:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names["model"]


def test_the_towers_of_the_page_have_all_members_of_a_tower(model: TowerPair) -> None:
    assert isinstance(model.image, ImageTower)
    assert isinstance(model.text, TextTower)
    for tower in (model.image, model.text):
        assert tower.parameter_depths().keys() == {name for name, _ in tower.named_parameters()}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_model_of_the_page_trains(model: TowerPair, tiny_config: Config, stage: int) -> None:
    stand_alone()
    config = changed(tiny_config, engine__zero_stage=stage, optimizer__lr=0.01)
    engine = build_engine(config, model, RankGroup(Rank(), "cpu", None))
    batch = batch_of(tiny_config, 0, range(8))
    losses = [float(engine.train(batch)["loss"]) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


def test_rows_and_texts_may_be_missing(model: TowerPair, tiny_config: Config) -> None:
    found = model(batch_of(tiny_config, 0, range(0)))
    torch.stack([each.sum() for each in found.tensors()]).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
