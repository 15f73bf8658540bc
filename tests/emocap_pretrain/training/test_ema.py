"""Tests the moving average of the weights: its values at every stage of ZeRO, how it resumes, and how it is read."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_batches import VOCABULARY, batch_of, rows_of
from engine_jobs import Place, engine_at
from gloo_ranks import on_gloo
from optimizer_cases import with_optimizer
from pretrain_fakes import changed
from safetensors.torch import load_file
from torch import Tensor

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.optimizer import EmaConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.memory import estimate
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.interop.average import with_average
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.ema import decay
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import Layout

STEPS = 4
DISCARDED, INFINITE = 1, 2  # The steps without an update: one is discarded, and the other has an infinite gradient.
Weights = dict[str, Tensor]


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return changed(tiny_config, global_batch=9, steps=STEPS, ema={"decay": 0.7})


def walk(world: RankGroup, engine: Engine, config: Config, root: Path) -> dict[str, Any]:
    """Makes the remaining steps, writes a snapshot after each one, and returns the layout of the snapshots."""
    for step in range(engine.step, config.steps):
        forward = engine.forward(batch_of(config, step, rows_of(world.rank, world.world_size, config.global_batch)))
        factor = torch.inf if step == INFINITE else 1.0
        hook = engine._engine.module.to_image.weight.register_hook(partial(torch.mul, other=factor))
        engine.discard(forward) if step == DISCARDED else engine.update(forward)
        hook.remove()
        write(engine, root / str(step + 1))
    return engine.layout.to_json()


def write(engine: Engine, folder: Path) -> None:
    snapshot = engine.snapshot()
    snapshot.write(folder)
    snapshot.release()


def begun(world: RankGroup, config: Config, stages: list[int], root: Path) -> dict[int, dict[str, Any]]:
    """Trains from the same initial weights at each stage, and returns the layout of the snapshots by stage."""
    layouts: dict[int, dict[str, Any]] = {}
    for stage in stages:
        engine = engine_at(config, world, stage, seed=0)
        folder = Place(world.world_size, stage).folder(root)
        write(engine, folder / "0")
        layouts[stage] = walk(world, engine, config, folder)
    return layouts


def resumed(world: RankGroup, config: Config, stage: int, source: Path, layout: dict[str, Any], root: Path) -> None:
    """Resumes from each snapshot of another job, and trains to the last step each time."""
    config = changed(config, engine__zero_stage=stage)
    for step in range(STEPS):
        torch.manual_seed(100 + world.rank)
        model = build_model(config, VOCABULARY)
        if world.is_main:
            fill(model, source / str(step) / WEIGHTS)
        engine = build_engine(config, model, world)
        engine.load(source / str(step), Layout.from_json(layout), step)
        walk(world, engine, config, root / str(step))


def read(folder: Path) -> tuple[Weights, Weights]:
    """Returns the weights in a snapshot and their average."""
    weights = load_file(folder / WEIGHTS)
    return weights, with_average(weights, folder)


def equal(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(each.equal(right[name]) for name, each in left.items())


def expected(root: Path) -> Weights:
    """Returns the average by its definition, computed from the weights in the snapshots of a job."""
    average, updates = load_file(root / "0" / WEIGHTS), 0
    for step in range(STEPS):
        if step not in {DISCARDED, INFINITE}:
            kept = min(0.7, (1 + updates) / (10 + updates))
            weights = load_file(root / str(step + 1) / WEIGHTS)
            average = {name: torch.lerp(each, weights[name], 1 - kept) for name, each in average.items()}
            updates += 1
    return average


@pytest.mark.parametrize(("ranks", "optimizer"), [(2, "adamw"), (3, "sgd"), (1, "adafactor")])
def test_the_average_is_that_of_the_applied_updates_at_every_stage(
    config: Config, tmp_path: Path, ranks: int, optimizer: str
) -> None:
    stages = [0] if optimizer == "adafactor" else [0, 1, 2, 3]
    on_gloo(ranks, begun, with_optimizer(config, optimizer), stages, tmp_path)
    for stage in stages:
        root = Place(ranks, stage).folder(tmp_path)
        averages = [read(root / str(step))[1] for step in range(STEPS + 1)]
        assert equal(averages[0], load_file(root / "0" / WEIGHTS)), "it begins with the weights"
        assert equal(averages[1], averages[DISCARDED + 1])
        assert equal(averages[1], averages[INFINITE + 1])
        assert not equal(averages[1], averages[STEPS])
        assert equal(averages[STEPS], expected(root)), stage


@pytest.mark.parametrize(
    ("source", "targets"), [((2, 1), [(2, 1), (1, 0), (3, 3)]), ((1, 0), [(2, 2)]), ((3, 3), [(1, 1)])]
)
def test_the_average_resumes_at_every_step_on_other_ranks_and_stages(
    config: Config, tmp_path: Path, source: tuple[int, int], targets: list[tuple[int, int]]
) -> None:
    place = Place(*source)
    layout = on_gloo(place.ranks, begun, config, [place.stage], tmp_path)[0][place.stage]
    unbroken = read(place.folder(tmp_path) / str(STEPS))
    for ranks, stage in targets:
        root = tmp_path / "again" / f"{ranks}-{stage}"
        on_gloo(ranks, resumed, config, stage, place.folder(tmp_path), layout, root)
        for step in range(STEPS):
            again = read(root / str(step) / str(STEPS))
            for found, wanted in zip(again, unbroken, strict=True):
                if (ranks, stage) == source:
                    assert equal(found, wanted), step
                for name, each in found.items():
                    torch.testing.assert_close(each, wanted[name], rtol=1e-3, atol=2e-5, msg=f"{name} from {step}")


def test_without_a_warm_up_the_decay_is_constant() -> None:
    warm, constant = EmaConfig(decay=0.9), EmaConfig(decay=0.9, warmup=False)
    assert [round(decay(warm, updates), 3) for updates in (0, 10, 80, 81, 1000)] == [0.1, 0.55, 0.9, 0.9, 0.9]
    assert [decay(constant, updates) for updates in (0, 1000)] == [0.9, 0.9]


def test_an_engine_file_that_is_missing_or_of_another_model_is_refused(config: Config, tmp_path: Path) -> None:
    on_gloo(2, begun, changed(config, steps=1), [1], tmp_path)
    folder = tmp_path / "2-1" / "1"
    weights = load_file(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"cannot be read: 'to_image.weight'"):
        with_average({name: each for name, each in weights.items() if name != "to_image.weight"}, folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        with_average(weights | {"to_image.weight": weights["to_image.weight"][:1].clone()}, folder)
    first, second = (folder / "engine" / f"rank-0000{rank}.safetensors" for rank in (0, 1))
    shutil.copyfile(first, second)  # The slices of a rank twice are as many elements as those of both ranks.
    with pytest.raises(CheckpointError, match="do not hold the whole moving average"):
        with_average(weights, folder)
    second.unlink()
    with pytest.raises(CheckpointError, match="do not hold the whole moving average") as caught:
        with_average(weights, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stage", "ranks"), [(0, 2), (1, 1), (3, 2)])
def test_the_estimate_counts_four_bytes_for_each_parameter_and_shards_them(
    config: Config, stage: int, ranks: int
) -> None:
    config = changed(config, engine__zero_stage=stage)
    averaged, plain = (estimate(each, ranks, on_gpu=False) for each in (config, changed(config, ema=None)))
    held = 4 * plain.parameters
    assert averaged.state - plain.state == held
    assert averaged.total - plain.total == pytest.approx(held / (ranks if stage else 1), abs=ranks)
