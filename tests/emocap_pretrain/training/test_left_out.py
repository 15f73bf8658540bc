"""Tests updates that are left out: on request, and if a gradient is not finite."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from engine_batches import batch_of
from engine_jobs import engine_at, stepped, walked, weights_of
from gloo_ranks import on_gloo
from pretrain_fakes import changed, stand_alone

from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training import zero
from emocap_pretrain.training.engine import Engine

ALONE = RankGroup(Rank(), "cpu", None)
STAGES = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


def unfit(engine: Engine) -> None:
    """Makes one weight's gradient infinite in the next backward pass."""
    name, parameter = next(iter(engine._engine.module.named_parameters()))
    assert name
    hook = parameter.register_hook(lambda gradient: (hook.remove(), gradient * torch.inf)[1])


def updates_of(engine: Engine) -> float:
    """Returns the number of updates that changed the weights, as AdamW counts them."""
    return float(zero.global_state(engine._engine, engine._optimizer)["step"])


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_reaches_no_weight(
    tiny_config: Config, stage: int, micro_batch: int | None
) -> None:
    config = changed(tiny_config, micro_batch=micro_batch)
    engine = engine_at(config, ALONE, stage, seed=0)
    stepped(engine, config, ALONE, range(1))
    before, updates = weights_of(engine), updates_of(engine)
    unfit(engine)
    metrics = engine.train(batch_of(config, 1, range(8)))
    assert metrics["skipped"] == 1.0
    assert metrics["gradient_norm"] == torch.inf
    assert metrics["finite"] == 0.0
    assert all(weight.equal(before[name]) for name, weight in weights_of(engine).items())
    assert (engine.step, updates_of(engine)) == (2, updates)
    # And the next step is as if nothing had been.
    (row,) = stepped(engine, config, ALONE, range(2, 3)).rows
    other = engine_at(config, ALONE, stage, seed=0)
    assert stepped(other, config, ALONE, range(3), left_out=[1]).rows[2] == row


def test_a_step_that_is_discarded_counts_and_changes_no_weight(tiny_config: Config) -> None:
    engine = engine_at(tiny_config, ALONE, 1, seed=0)
    before = weights_of(engine)
    forward = engine.forward(batch_of(tiny_config, 0, range(8)))
    first = engine.discard(forward)
    assert (engine.step, first["skipped"], "gradient_norm" in first) == (1, 1.0, False)
    assert forward.loss.equal(torch.as_tensor(first["loss"]))
    assert not forward.loss.requires_grad
    assert all(weight.equal(before[name]) for name, weight in weights_of(engine).items())
    second = engine.train(batch_of(tiny_config, 1, range(8)))
    assert (engine.step, second["skipped"]) == (2, 0.0)
    assert first["finite"] == second["finite"] == 1.0


def test_ranks_leave_out_the_same_updates_at_every_stage(tiny_config: Config) -> None:
    # Step 0 is before stage 3 knows the order of the modules; later it fetches ahead, and a snapshot follows step 5.
    config = changed(tiny_config, global_batch=9, steps=6)
    for micro_batch in (None, 2):
        found = on_gloo(2, walk_and_leave_out, changed(config, micro_batch=micro_batch))[0]
        for rows in found.values():
            assert [skipped for *_, skipped in rows] == [1, 0, 0, 1, 0, 1]
            assert rows == [pytest.approx(row, rel=1e-4) for row in found[0]]


def walk_and_leave_out(world: RankGroup, config: Config) -> dict[int, list[tuple[float, float, float]]]:
    return {stage: steps.rows for stage, steps in walked(world, config, STAGES, 6, left_out=[0, 3, 5]).items()}


def test_sections_of_a_step_are_timed_in_order(tiny_config: Config) -> None:
    entered: list[str] = []

    @contextmanager
    def timed(section: str) -> Iterator[None]:
        entered.append(section)
        yield
        entered.append(f"/{section}")

    engine = engine_at(tiny_config, ALONE, 1, seed=0)
    engine.update(engine.forward(batch_of(tiny_config, 0, range(8)), timed=timed), timed=timed)
    assert entered == [f"{end}{name}" for name in ("forward", "loss", "backward", "update") for end in ("", "/")]
    entered.clear()
    engine.discard(engine.forward(batch_of(tiny_config, 1, range(8)), timed=timed))
    assert entered == ["forward", "/forward", "loss", "/loss"]
