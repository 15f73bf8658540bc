"""Defines the functions that the ranks run in the tests of the engine. Each has the rank's group as first argument."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from engine_batches import VOCABULARY, batch_of, rows_of
from pretrain_fakes import changed
from torch import Tensor

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training import zero
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import Layout

SAVED_AT = 2


class Place(NamedTuple):
    """A job with a number of ranks and a stage of ZeRO."""

    ranks: int
    stage: int

    def folder(self, root: Path) -> Path:
        return root / f"{self.ranks}-{self.stage}"


class Steps(NamedTuple):
    """Holds (loss, gradient norm, `skipped`) of each step, and the weights after the last step."""

    rows: list[tuple[float, float, float]]
    weights: dict[str, Tensor]


def engine_at(config: Config, world: RankGroup, stage: int, *, seed: int | None = None) -> Engine:
    """Returns a new engine. Without a seed each rank has different weights, and the engine must use those of rank 0."""
    torch.manual_seed(world.rank if seed is None else seed)
    config = changed(config, engine__zero_stage=stage)
    return build_engine(config, build_model(config, VOCABULARY), world)


def stepped(
    engine: Engine,
    config: Config,
    world: RankGroup,
    steps: range,
    left_out: Sequence[int] = (),
    rows: Sequence[int] = (),
) -> Steps:
    """Trains for `steps`. The sizes of the global batches are the elements of `rows` in turn."""
    found: list[tuple[float, float, float]] = []
    for step in steps:
        count = rows[step % len(rows)] if rows else config.global_batch
        batch = batch_of(config, step, rows_of(world.rank, world.world_size, count))
        forward = engine.forward(batch)
        made = engine.discard(forward) if step in left_out else engine.update(forward)
        metrics = {name: float(value) for name, value in made.items()}
        found.append((metrics["loss"], metrics.get("gradient_norm", -1.0), metrics["skipped"]))
    return Steps(found, weights_of(engine))


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """Returns the weights on rank 0, and an empty dictionary on all other ranks."""
    snapshot = engine.snapshot()
    snapshot.release()
    return {name: weight.clone() for name, weight in snapshot.weights.items()}


def walked(world: RankGroup, config: Config, stages: Sequence[int], steps: int, **options: Any) -> dict[int, Steps]:
    """Trains a new engine at each ZeRO stage, always from equal weights."""
    return {
        stage: stepped(engine_at(config, world, stage, seed=0), config, world, range(steps), **options)
        for stage in stages
    }


def saved(
    world: RankGroup, config: Config, stages: Sequence[int], root: Path
) -> dict[int, tuple[dict[str, Any], Steps]]:
    """Trains at each ZeRO stage, writes a snapshot and continues. Returns its layout and the steps after it."""
    return {stage: _saved(world, config, Place(world.world_size, stage), root) for stage in stages}


def _saved(world: RankGroup, config: Config, place: Place, root: Path) -> tuple[dict[str, Any], Steps]:
    engine = engine_at(config, world, place.stage)
    stepped(engine, config, world, range(SAVED_AT))
    snapshot = engine.snapshot()
    snapshot.write(place.folder(root))
    snapshot.release()
    return engine.layout.to_json(), stepped(engine, config, world, range(SAVED_AT, config.steps))


def resumed(
    world: RankGroup, config: Config, sources: Sequence[tuple[int, Place, dict[str, Any]]], root: Path
) -> list[Steps]:
    """Resumes at a stage from the snapshot of a job with its layout, for each source. Returns the steps afterwards."""
    return [_resumed(world, config, stage, source.folder(root), layout) for stage, source, layout in sources]


def moved(world: RankGroup, config: Config, stage: int, source: Path, layout: dict[str, Any], target: Path) -> None:
    """Loads a snapshot of another job at a stage, and writes it again without a step."""
    snapshot = _loaded(world, config, stage, source, layout).snapshot()
    snapshot.write(target)
    snapshot.release()


def _resumed(world: RankGroup, config: Config, stage: int, folder: Path, layout: dict[str, Any]) -> Steps:
    engine = _loaded(world, config, stage, folder, layout)
    return stepped(engine, config, world, range(SAVED_AT, config.steps))


def _loaded(world: RankGroup, config: Config, stage: int, folder: Path, layout: dict[str, Any]) -> Engine:
    config = changed(config, engine__zero_stage=stage)
    torch.manual_seed(100 + world.rank)
    model = build_model(config, VOCABULARY)
    if world.is_main:
        fill(model, folder / WEIGHTS)
    engine = build_engine(config, model, world)
    engine.load(folder, Layout.from_json(layout), SAVED_AT)
    return engine


def states_at(world: RankGroup, config: Config, stages: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Returns, by stage and parameter, the slice of this rank's optimizer and its `per_element` states."""
    return {stage: _states_at(world, config, stage) for stage in stages}


def _states_at(world: RankGroup, config: Config, stage: int) -> dict[str, Any]:
    engine = engine_at(config, world, stage, seed=0)
    stepped(engine, config, world, range(1))
    found = zero.state_slices(engine._engine, engine._optimizer, engine.layout, world.rank)
    return {each.slice.name: (each.slice, [view.clone() for view in each.per_element.values()]) for each in found}
