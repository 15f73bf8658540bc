"""Tests the code of docs/extend/optimizer.md: its optimizer trains, and resumes with equal bits."""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_batches import VOCABULARY
from engine_jobs import stepped
from pretrain_fakes import changed, stand_alone
from safetensors.torch import load_file

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training import optimizer
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.optimizer import OptimizerSpec
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import file_of

PAGE = Path(__file__).parents[3] / "docs/extend/optimizer.md"
ALONE = RankGroup(Rank(), "cpu", None)
STEPS = 4


@pytest.fixture
def nadam(monkeypatch: pytest.MonkeyPatch) -> Callable[[OptimizerConfig], OptimizerSpec]:
    """Adds the function on the page to `OPTIMIZERS`, and returns it."""
    stand_alone()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)
    monkeypatch.setitem(optimizer.OPTIMIZERS, "nadam", names["nadam"])  # pyright: ignore[reportArgumentType]
    return names["nadam"]


def with_nadam(config: Config, stage: int) -> Config:
    """Returns the config with the name of the new optimizer, which the schema does not accept yet."""
    config = changed(config, engine__zero_stage=stage, steps=STEPS)
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": "nadam"})})


def engine_of(config: Config, weights: Path | None = None) -> Engine:
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY)
    if weights:
        fill(model, weights)
    return build_engine(config, model, ALONE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_optimizer_of_the_page_trains_and_resumes_to_the_bit_at_every_step(
    tiny_config: Config, tmp_path: Path, nadam: Callable[[OptimizerConfig], OptimizerSpec], stage: int
) -> None:
    config = with_nadam(tiny_config, stage)
    engine = engine_of(config)
    rows: list[tuple[float, float, float]] = []
    for step in range(STEPS):
        snapshot = engine.snapshot()
        snapshot.write(tmp_path / str(step))
        snapshot.release()
        rows += stepped(engine, config, ALONE, range(step, step + 1)).rows
    assert rows[-1][0] < rows[0][0]
    assert engine.layout.optimizer == nadam(config.optimizer).name
    for step in range(STEPS):
        later = engine_of(config, tmp_path / str(step) / WEIGHTS)
        later.load(tmp_path / str(step), engine.layout, step)
        assert stepped(later, config, ALONE, range(step, STEPS)).rows == rows[step:]
    stored = load_file(tmp_path / str(STEPS - 1) / file_of(0))
    assert float(stored["step"]) == STEPS - 1
    assert 0 < float(stored["mu_product"]) < 1


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_the_page_declares_exactly_the_state_that_torch_keeps(
    nadam: Callable[[OptimizerConfig], OptimizerSpec], shape: tuple[int, ...]
) -> None:
    spec, parameter = nadam(OptimizerConfig()), torch.nn.Parameter(torch.ones(shape))
    made = spec.make([{"params": [parameter], "lr": 0.1, "weight_decay": 0.1}])
    parameter.grad = torch.ones(shape)
    made.step()
    assert made.state[parameter].keys() == spec.begin(parameter, {}).keys() == {*spec.per_element, *spec.global_}
