"""Tests the loss scale of fp16: its rule, the steps that it leaves out, and that it resumes. All tests run on a CPU."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_batches import VOCABULARY, batch_of, rows_of
from gloo_ranks import on_gloo
from hypothesis import given
from hypothesis import strategies as st
from pretrain_fakes import changed, stand_alone

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config, HealthConfig
from emocap_pretrain.errors import TrainingError
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training import loss_scale
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.guard import Guard
from emocap_pretrain.training.loss_scale import LARGEST, LEAST, LossScale
from emocap_pretrain.training.snapshot import fill
from emocap_pretrain.training.state_layout import Layout

ALONE = RankGroup(Rank(), "cpu", None)
STEPS, INFINITE, SCALE = 4, 1, 64.0
Row = dict[str, float]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_the_rule_is_that_of_torch(overflows: list[bool], interval: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "UPDATES_BEFORE_GROWTH", interval)
        found = LossScale(value=2.0**12)
        value, growth = torch.tensor(2.0**12), torch.tensor(0, dtype=torch.int32)
        for overflowed in overflows:
            found = found.after(overflowed=overflowed)
            torch._amp_update_scale_(value, growth, torch.tensor(float(overflowed)), 2.0, 0.5, interval)
            # Torch has no bounds.
            value.clamp_(LEAST, LARGEST)
            assert (found.value, found.updates) == (float(value), int(growth))
        assert found.overflows == sum(overflows)
        assert LossScale.from_tensors(found.to_tensors()) == found


def engine_from(config: Config, weights: Path | None = None, world: RankGroup = ALONE) -> Engine:
    torch.manual_seed(0 if weights is None else 100)
    model = build_model(config, VOCABULARY)
    if weights and world.is_main:
        fill(model, weights)
    engine = build_engine(config, model, world)
    if engine._loss_scale:  # With the first scale of a real run, this model would overflow in more than four steps.
        engine._loss_scale = LossScale(value=SCALE)
    return engine


def stepped(engine: Engine, config: Config, step: int, world: RankGroup = ALONE) -> Row:
    """Makes a step; in the step `INFINITE` a gradient is infinite."""
    forward = engine.forward(batch_of(config, step, rows_of(world.rank, world.world_size, config.global_batch)))
    factor = torch.inf if step == INFINITE else 1.0
    hook = engine._engine.module.to_image.weight.register_hook(partial(torch.mul, other=factor))
    metrics = engine.update(forward)
    hook.remove()
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(("stage", "micro_batch"), [(0, None), (1, None), (2, 4), (3, None)])
def test_fp16_trains_leaves_out_an_overflow_and_resumes_to_the_bit_at_every_step(
    tiny_config: Config, tmp_path: Path, stage: int, micro_batch: int | None
) -> None:
    stand_alone()
    changes = {"steps": STEPS, "engine__zero_stage": stage, "micro_batch": micro_batch}
    config = changed(tiny_config, engine__precision="fp16", **changes)
    engine, plain = engine_from(config), engine_from(changed(tiny_config, **changes))
    rows: list[Row] = []
    for step in range(STEPS):
        snapshot = engine.snapshot()
        snapshot.write(tmp_path / str(step))
        snapshot.release()
        rows.append(stepped(engine, config, step))
    first = stepped(plain, config, 0)
    assert rows[0]["loss"] == pytest.approx(first["loss"], rel=0.01)
    assert rows[0]["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=0.05)
    assert [row["overflowed"] for row in rows] == [0, 1, 0, 0]
    assert [row["overflows"] for row in rows] == [0, 1, 1, 1]
    assert [row["loss_scale"] for row in rows] == [SCALE, SCALE, SCALE / 2, SCALE / 2]
    assert all(row["finite"] == 1.0 for row in rows)
    assert (rows[INFINITE]["skipped"], "gradient_norm" in rows[INFINITE]) == (1.0, False)
    assert rows[-1]["loss"] < rows[0]["loss"]
    for step in range(1, STEPS):
        later = engine_from(config, tmp_path / str(step) / WEIGHTS)
        later.load(tmp_path / str(step), engine.layout, step)
        assert [stepped(later, config, each) for each in range(step, STEPS)] == rows[step:]


def begun(world: RankGroup, config: Config, folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Writes a snapshot after the step with an infinite gradient. Returns its layout, and the steps after it."""
    engine = engine_from(config, world=world)
    for step in range(INFINITE + 1):
        stepped(engine, config, step, world)
    snapshot = engine.snapshot()
    snapshot.write(folder)
    snapshot.release()
    return engine.layout.to_json(), [stepped(engine, config, step, world) for step in range(INFINITE + 1, STEPS)]


def continued(world: RankGroup, config: Config, folder: Path, layout: dict[str, Any]) -> list[Row]:
    engine = engine_from(config, folder / WEIGHTS, world)
    engine.load(folder, Layout.from_json(layout), INFINITE + 1)
    return [stepped(engine, config, step, world) for step in range(INFINITE + 1, STEPS)]


def test_fp16_resumes_on_other_ranks_with_the_same_scale_and_within_the_rounding_of_float16(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = changed(tiny_config, global_batch=9, steps=STEPS, engine__precision="fp16")
    layout, rows = on_gloo(3, begun, config, tmp_path)[0]
    assert [(row["loss_scale"], row["overflows"]) for row in rows] == [(SCALE / 2, 1.0)] * 2
    for ranks, stage in ((1, 0), (2, 3)):
        for found in on_gloo(ranks, continued, changed(config, engine__zero_stage=stage), tmp_path, layout):
            for row, wanted in zip(found, rows, strict=True):
                assert (row["loss_scale"], row["overflows"]) == (wanted["loss_scale"], wanted["overflows"])
                assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
                assert row["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-2)


def test_an_infinite_gradient_at_the_smallest_scale_counts_as_not_finite(tiny_config: Config) -> None:
    stand_alone()
    config = changed(tiny_config, steps=STEPS, engine__precision="fp16")
    engine = engine_from(config)
    engine._loss_scale = LossScale(value=LEAST)
    engine.step = INFINITE
    row = stepped(engine, config, INFINITE)
    assert (row["overflowed"], row["finite"], row["gradient_norm"]) == (0.0, 0.0, float("inf"))


def test_steps_without_an_update_by_the_loss_scale_do_not_count_as_failures() -> None:
    guard = Guard(HealthConfig(nonfinite="skip", max_skips=1))
    for step in (3, 5, 6):
        guard.overflowed(step)
    assert (guard.streak(6), guard.streak(4)) == (2, 0)
    again = Guard(HealthConfig(nonfinite="skip", max_skips=1))
    again.load(guard.state())
    again.overflowed(7)
    assert again.streak(7) == 3
    assert again.judge(8, float("nan")).action == "skip"  # None of them has counted towards max_skips.
    with pytest.raises(TrainingError, match=r"last 3 of 7 steps were left out \(a gradient overflowed in fp16\)"):
        again.require_updates(7)
