"""Tests mining with the vectors of the averaged model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_batches import VOCABULARY, batch_of, rows_of
from engine_jobs import engine_at
from gloo_ranks import on_gloo
from pretrain_fakes import changed
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.memory import estimate
from emocap_pretrain.interop.average import with_average
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.snapshot import fill

STEPS = 4
MINING = {"top_k": 2}


@pytest.fixture
def config(tiny_config: Config) -> Config:
    mining = {**MINING, "features": "ema"}
    return changed(
        tiny_config, global_batch=9, steps=STEPS, optimizer__lr=1e-2, ema={"decay": 0.9}, objective__mining=mining
    )


def losses_of(world: RankGroup, engine: Engine, config: Config) -> list[tuple[float, float]]:
    """Makes the remaining steps, and returns the loss and the number of positives of each step."""
    found: list[tuple[float, float]] = []
    for step in range(engine.step, config.steps):
        rows = rows_of(world.rank, world.world_size, config.global_batch)
        metrics = engine.update(engine.forward(batch_of(config, step, rows)))
        found.append((float(metrics["loss"]), float(metrics["global/positives"])))
    return found


def averages_of(engine: Engine) -> dict[str, Tensor]:
    assert engine._averaged is not None
    return {name: each.clone() for name, each in engine._averaged._model.state_dict().items()}


def guided(world: RankGroup, config: Config, stages: list[int], root: Path) -> dict[int, Any]:
    """Trains at each stage, saves in the middle and resumes. Returns the losses and averages of both engines."""
    found: dict[int, Any] = {}
    for stage in stages:
        config = changed(config, engine__zero_stage=stage)
        engine = engine_at(config, world, stage, seed=0)
        first = losses_of(world, engine, changed(config, steps=2))
        snapshot = engine.snapshot()
        snapshot.write(root / str(stage))
        snapshot.release()
        middle, then = averages_of(engine), losses_of(world, engine, config)
        torch.manual_seed(7 + world.rank)
        model = build_model(config, VOCABULARY)
        if world.is_main:
            fill(model, root / str(stage) / WEIGHTS)
        again = build_engine(config, model, world)
        again.load(root / str(stage), engine.layout, 2)
        found[stage] = (first, middle, then, averages_of(engine), losses_of(world, again, config), averages_of(again))
    return found


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, None), (2, 2)])
def test_every_rank_mines_with_the_average_that_a_checkpoint_holds(
    config: Config, tmp_path: Path, ranks: int, micro_batch: int | None
) -> None:
    by_rank = on_gloo(ranks, guided, changed(config, micro_batch=micro_batch), [0, 1, 2], tmp_path)
    for stage in (0, 1, 2):
        folder = tmp_path / str(stage)
        stored = with_average(load_file(folder / WEIGHTS), folder)
        for found in by_rank:
            _, middle, then, end, again, again_end = found[stage]
            assert all(each.equal(stored[name]) for name, each in middle.items())
            assert again == then, "it resumes to the bit"
            assert all(each.equal(end[name]) for name, each in again_end.items())


def test_mining_by_the_average_begins_as_mining_by_the_model_and_differs_later(config: Config) -> None:
    own = changed(config, objective__mining=MINING)
    left, right = (on_gloo(1, trained, each)[0] for each in (config, own))
    assert left[0] == right[0], "the average begins with the weights of the model"
    assert left[-1] != right[-1]


def trained(world: RankGroup, config: Config) -> list[tuple[float, float]]:
    return losses_of(world, engine_at(config, world, 1, seed=0), config)


def test_without_an_average_or_with_divided_weights_the_guide_is_refused(config: Config) -> None:
    with pytest.raises(ValidationError, match=r"objective.mining.features=ema needs the average of the weights"):
        changed(config, ema=None)
    with pytest.raises(ValidationError, match=r"engine.zero_stage=3 divides the weights: set engine.zero_stage to 0"):
        changed(config, engine__zero_stage=3)


def test_the_estimate_counts_the_whole_averaged_model_on_each_rank(config: Config) -> None:
    guided, own = (estimate(each, 2, on_gpu=False) for each in (config, changed(config, objective__mining=MINING)))
    assert guided.weights - own.weights == 4 * own.parameters
    assert guided.row_flops > own.row_flops
