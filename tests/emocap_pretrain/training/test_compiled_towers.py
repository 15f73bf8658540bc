"""Tests that compiled towers train like others, on a CPU, and what is said where they cannot be compiled."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from engine_batches import VOCABULARY
from engine_jobs import Steps, stepped, weights_of
from gloo_ranks import on_gloo
from pretrain_fakes import changed, stand_alone
from pydantic import ValidationError
from torch import Tensor

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training import compiled_towers
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.compiled_towers import compile_towers, require_compiler

ALONE = RankGroup(Rank(), "cpu", None)
STEPS = 3


def trained(config: Config, backend: str | None) -> Steps:
    stand_alone()
    return trained_on(ALONE, config, backend)


def trained_on(world: RankGroup, config: Config, backend: str | None) -> Steps:
    torch.manual_seed(0)
    model = build_model(config, VOCABULARY)
    if backend:
        compile_towers(model, backend=backend)
    engine = build_engine(config, model, world)
    # The second batch has fewer rows, as at the end of an epoch, and other numbers of sentences.
    steps = stepped(engine, config, world, range(STEPS), rows=[config.global_batch, 5, config.global_batch])
    return Steps(steps.rows, weights_of(engine))


def check(config: Config, backend: str) -> None:
    check_equal(trained(config, None), trained(config, backend))


def check_equal(plain: Steps, compiled: Steps) -> None:
    assert plain.weights.keys() == compiled.weights.keys()
    for row, wanted in zip(compiled.rows, plain.rows, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    for name, weight in compiled.weights.items():
        torch.testing.assert_close(weight, plain.weights[name], rtol=1e-3, atol=2e-5, msg=name)


def with_dropout(config: Config) -> Config:
    """Returns the config with dropout in the image tower."""
    return changed(config, model__image__options={**config.model.image.options, "proj_drop_rate": 0.2})


@pytest.mark.parametrize(("stage", "micro_batch"), [(0, None), (2, 4)])
def test_traced_towers_take_the_same_steps(tiny_config: Config, stage: int, micro_batch: int | None) -> None:
    config = changed(with_dropout(tiny_config), steps=STEPS, engine__zero_stage=stage, micro_batch=micro_batch)
    check(config, "aot_eager")


class Tokens(torch.nn.Module):
    """Is a tower of one parameter that is added to each row, and one that is put before each row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(1, 1, 3))
        self.positions = torch.nn.Parameter(torch.randn(1, 5, 3))

    def encode_image(self, images: Tensor) -> Tensor:
        tokens = torch.cat([self.first.expand(len(images), -1, -1), images], 1) + self.positions
        return tokens * tokens.sin()

    encode_text = encode_image


@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_of_two_passes_are_added(rows: int) -> None:
    """Fails with torch's compiled code for one row, whose gradients share memory, so that a sum counts twice."""
    torch.manual_seed(0)
    towers, images = SimpleNamespace(image=Tokens(), text=Tokens()), torch.randn(rows, 4, 3)
    compile_towers(cast("TowerPair", towers), backend="aot_eager")
    found = list[Tensor]()
    for _ in range(2):
        towers.image.encode_image(images).sum().backward()
        found.append(torch.cat([each.grad.flatten().clone() for each in towers.image.parameters()]))
    torch.testing.assert_close(found[1], 2 * found[0])


def test_passes_of_a_single_row_are_exact(tiny_config: Config) -> None:
    config = changed(tiny_config, steps=STEPS, global_batch=3, micro_batch=2)
    check(config, "aot_eager")


@pytest.mark.slow
def test_two_ranks_with_fp16_and_averaged_weights_take_the_same_steps(tiny_config: Config) -> None:
    optimizer = {"name": "schedule_free", "schedule": "constant", "lr": 1e-3, "warmup_steps": 1}
    config = changed(tiny_config, steps=STEPS, global_batch=6, micro_batch=2, optimizer=optimizer)
    config = changed(config, engine__precision="fp16", engine__zero_stage=1)
    plain, compiled = (on_gloo(2, trained_on, config, backend)[0] for backend in (None, "aot_eager"))
    check_equal(plain, compiled)


@pytest.mark.slow
def test_compiled_towers_take_the_same_steps(tiny_config: Config) -> None:
    check(changed(with_dropout(tiny_config), steps=STEPS, engine__zero_stage=1, micro_batch=4), "inductor")


def test_the_setting_compiles_the_towers(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_alone()
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function.__name__) or function)
    build_engine(tiny_config, build_model(tiny_config, VOCABULARY), ALONE)
    assert compiled == []
    config = changed(tiny_config, engine__compile=True)
    build_engine(config, build_model(config, VOCABULARY), ALONE)
    assert compiled == ["encode_image", "encode_text"]


def test_a_host_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler \(install g\+\+\) on each host") as caught:
        require_compiler("cpu")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(compiled_towers.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match=r"C\+\+ compiler .* and the headers of Python \(install python3-dev\)"):
        require_compiler("cpu")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"triton \(install the extra gpu\) and a C compiler \(install gcc\)"):
        require_compiler("cuda:0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": {"compile": True, "zero_stage": 3}}, "compile=true cannot trace the hooks"),
        ({"engine__compile": True, "model__checkpoint_activations": True}, "decides itself which activations"),
        ({"engine": {"offload_optimizer": True, "zero_stage": 0}}, "is a part of ZeRO: set zero_stage to 1, 2 or 3"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    tiny_config: Config, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(tiny_config, **changes)
