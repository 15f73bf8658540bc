"""Tests which weights a run with schedule-free AdamW means for use, and that these are restored and evaluated."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from emocap_shards.store import open_store
from engine_jobs import Place, engine_at, stepped
from gloo_ranks import on_gloo
from optimizer_cases import with_optimizer
from pretrain_fakes import changed, finished
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.interop.average import BASE, _whole, with_schedule_free
from emocap_pretrain.interop.restore import restore
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.run_folder.results import average_of
from emocap_pretrain.training.schedule import learning_rate

STEPS = 3
RATES = {"warmup_steps": 2, "betas": [0.8, 0.98]}


def walked(world: RankGroup, config: Config, stages: Sequence[int], root: Path) -> None:
    """Trains at each stage, and writes a snapshot before the first step and after each step."""
    for stage in stages:
        engine = engine_at(config, world, stage, seed=0)
        for step in range(STEPS + 1):
            snapshot = engine.snapshot()
            snapshot.write(Place(world.world_size, stage).folder(root) / str(step))
            snapshot.release()
            if step < STEPS:
                stepped(engine, config, world, range(step, step + 1))


def by_definition(config: Config, folders: Sequence[Path]) -> dict[str, Tensor]:
    """Returns the mean of the states z after each step, weighted by the squares of the largest rate so far."""
    average, total, largest = load_file(folders[0] / WEIGHTS), 0.0, 0.0
    for step, folder in enumerate(folders[1:]):
        largest = max(largest, learning_rate(config.optimizer, step, config.steps))
        total += largest**2
        bases = _whole(load_file(folder / WEIGHTS), folder, BASE, "average")
        average = {name: each.lerp(bases[name], largest**2 / total) for name, each in average.items() if name in bases}
    return average


def test_the_average_is_that_of_the_definition_at_every_stage(tiny_config: Config, tmp_path: Path) -> None:
    config = with_optimizer(changed(tiny_config, global_batch=9, steps=STEPS), "schedule_free", **RATES)
    on_gloo(2, walked, config, (0, 1, 3), tmp_path)
    for stage in (0, 1, 3):
        folders = [Place(2, stage).folder(tmp_path) / str(step) for step in range(STEPS + 1)]
        weights = load_file(folders[-1] / WEIGHTS)
        found = with_schedule_free(weights, folders[-1], beta=0.8)
        assert not found["to_image.weight"].equal(weights["to_image.weight"])
        for name, wanted in by_definition(config, folders).items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5, msg=f"stage {stage}: {name}")


def test_a_run_is_evaluated_and_restored_with_the_average(
    tiny: Callable[[Path], Config], tmp_path: Path, faces: str
) -> None:
    config = with_optimizer(tiny(tmp_path), "schedule_free", **RATES)
    config = finished(changed(config, steps=2, evaluation__url=faces))
    report = RunFolder(open_store(config.url)).report(2)
    assert report is not None
    assert report.weights == "schedule_free"
    assert [each.weights for each in report.other_weights] == ["raw"]
    assert "| evaluated weights | average of schedule-free AdamW |" in report.markdown()
    average, raw = restore(config.url), restore(config.url, weights="raw")
    assert (average.weights, raw.weights) == ("schedule_free", "raw")
    assert not average.model.to_image.weight.equal(raw.model.to_image.weight)
    with pytest.raises(CheckpointError, match="keeps no moving average"):
        restore(config.url, weights="ema")
    other = changed(config, optimizer={"name": "adamw"})
    with pytest.raises(CheckpointError, match=r"state of schedule_free, and optimizer\.name is adamw"):
        restore(config.url, config=other)


def test_the_stored_settings_say_which_average_a_run_keeps() -> None:
    assert average_of({"optimizer": {"name": "schedule_free"}, "ema": None}) == "schedule_free"
    assert average_of({"optimizer": {"name": "adamw"}, "ema": {"decay": 0.9}}) == "ema"
    assert [average_of(stored) for stored in ({}, None, {"optimizer": "schedule_free"})] == ["raw", "raw", "raw"]


def test_a_second_average_and_a_schedule_are_refused(tiny_config: Config) -> None:
    with pytest.raises(ValidationError, match="averages the weights itself"):
        changed(with_optimizer(tiny_config, "schedule_free"), ema={})
    with pytest.raises(ValidationError, match="takes the place of the schedule cosine: set schedule=constant"):
        changed(tiny_config, optimizer={"name": "schedule_free"})
    with pytest.raises(ValidationError, match="needs betas whose first value is above 0"):
        with_optimizer(tiny_config, "schedule_free", betas=[0.0, 0.98])
