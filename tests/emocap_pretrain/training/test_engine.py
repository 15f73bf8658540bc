import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from emocap_shards.stream import Stream
from pretrain_fakes import changed, stand_alone

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.datasets import train_tokenizer
from emocap_pretrain.data.loader import batches
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_collate, build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.schedule import learning_rate
from emocap_pretrain.training.snapshot import fill

ALONE = RankGroup(Rank(), "cpu", None)
STEPS = 5


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()
    torch.set_num_threads(1)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return changed(tiny_config, steps=STEPS, optimizer__lr=1e-2)


@pytest.fixture
def tokenizer(config: Config) -> Tokenizer:
    return train_tokenizer(config.data, config.model.text.vocabulary)


@pytest.fixture
def data(config: Config, tokenizer: Tokenizer) -> list[Batch]:
    stream = Stream(url=config.data.url, global_batch=config.global_batch)
    return [delivery.batch for delivery in islice(batches(stream, build_collate(config, tokenizer)), STEPS)]


def engine_of(config: Config, tokenizer: Tokenizer, *, seed: int = 0) -> Engine:
    torch.manual_seed(seed)
    return build_engine(config, build_model(config, tokenizer.vocabulary), ALONE)


def trained(engine: Engine, data: Sequence[Batch]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in engine.train(batch).items()} for batch in data]


@pytest.fixture
def plain(config: Config, tokenizer: Tokenizer, data: list[Batch]) -> list[dict[str, float]]:
    """Returns the metrics of every step without ZeRO."""
    return trained(engine_of(changed(config, engine__zero_stage=0), tokenizer), data)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_of_zero_takes_the_same_steps(
    config: Config, tokenizer: Tokenizer, data: list[Batch], plain: list[dict[str, float]], stage: int
) -> None:
    rows = trained(engine_of(changed(config, engine__zero_stage=stage), tokenizer), data)
    assert plain[-1]["loss"] < plain[0]["loss"]
    for row, wanted in zip(rows, plain, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-4)
        assert row["scale"] == pytest.approx(wanted["scale"], rel=1e-5)
        assert row["learning_rate"] == wanted["learning_rate"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_that_was_saved_and_loaded_continues_to_the_bit(
    config: Config, tokenizer: Tokenizer, data: list[Batch], tmp_path: Path, stage: int
) -> None:
    config = changed(config, engine__zero_stage=stage)
    engine = engine_of(config, tokenizer)
    trained(engine, data[:2])
    snapshot = engine.snapshot()
    snapshot.write(tmp_path)
    snapshot.release()
    torch.manual_seed(1)
    model = build_model(config, tokenizer.vocabulary)
    fill(model, tmp_path / WEIGHTS)
    loaded = build_engine(config, model, ALONE)
    loaded.load(tmp_path, engine.layout, 2)
    assert loaded.step == 2
    assert_equal(weights_of(loaded), weights_of(engine))
    assert trained(loaded, data[2:]) == trained(engine, data[2:])
    assert_equal(weights_of(loaded), weights_of(engine))


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    snapshot = engine.snapshot()
    snapshot.release()
    return {name: weight.clone() for name, weight in snapshot.weights.items()}


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.equal(others[name]), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_are_those_of_the_whole_model_at_every_stage(config: Config, tokenizer: Tokenizer, stage: int) -> None:
    torch.manual_seed(0)
    whole = build_model(config, tokenizer.vocabulary).state_dict()
    weights = weights_of(engine_of(changed(config, engine__zero_stage=stage), tokenizer))
    assert_equal(weights, {name: tensor.detach() for name, tensor in whole.items()})
    assert all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights.values())
    build_model(config, tokenizer.vocabulary).load_state_dict(weights)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_learning_rate_is_the_schedule_s_and_the_norm_is_before_clipping(
    config: Config, tokenizer: Tokenizer, data: list[Batch], stage: int
) -> None:
    settings = {"engine__zero_stage": stage, "optimizer__warmup_steps": 2}
    free = changed(config, optimizer__clip_norm=0.0, **settings)
    tight = changed(config, optimizer__clip_norm=1e-3, **settings)
    rows = trained(engine_of(tight, tokenizer), data)
    assert [row["learning_rate"] for row in rows] == [learning_rate(tight.optimizer, step, STEPS) for step in range(5)]
    first = trained(engine_of(free, tokenizer), data[:1])[0]
    assert rows[0]["gradient_norm"] == pytest.approx(first["gradient_norm"], rel=1e-5)
    assert rows[0]["gradient_norm"] > 1e-3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_scales_the_gradient(config: Config, tokenizer: Tokenizer, data: list[Batch], stage: int) -> None:
    # Beside an eps of 1, Adam's first step is lr times the gradient, as long as that is small.
    changes = {"engine__zero_stage": stage, "optimizer__eps": 1.0, "optimizer__weight_decay": 0.0}
    config = changed(config, optimizer__clip_norm=1e-2, **changes)
    engine = engine_of(config, tokenizer)
    before = {name: weight.clone() for name, weight in weights_of(engine).items()}
    (row,) = trained(engine, data[:1])
    moved = math.sqrt(sum(float((weight - before[name]).square().sum()) for name, weight in weights_of(engine).items()))
    assert row["gradient_norm"] > 0.1
    assert moved == pytest.approx(config.optimizer.lr * 1e-2, rel=1e-2)


def test_a_step_depends_on_seed_step_and_rank_and_not_on_the_random_numbers_before_it(
    config: Config, tokenizer: Tokenizer, data: list[Batch]
) -> None:
    options = {**config.model.image.options, "proj_drop_rate": 0.5}
    config = changed(config, model__image__options=options)
    calm, disturbed = engine_of(config, tokenizer), engine_of(config, tokenizer)
    wanted = trained(calm, data[:2])
    torch.rand(17)
    first = trained(disturbed, data[:1])
    torch.rand(5)
    assert first + trained(disturbed, data[1:2]) == wanted
    other = trained(engine_of(changed(config, seed=1), tokenizer), data[:1])
    assert other[0]["loss"] != wanted[0]["loss"]


def test_weight_decay_acts_on_matrices_alone(config: Config, tokenizer: Tokenizer, data: list[Batch]) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    for decay in (0.0, 1.0):
        engine = engine_of(changed(config, optimizer__weight_decay=decay), tokenizer)
        trained(engine, data[:1])
        weights.append(weights_of(engine))
    trainable = [
        name for name, each in engine_of(config, tokenizer)._engine.module.named_parameters() if each.requires_grad
    ]
    decayed = {name for name in trainable if not weights[0][name].equal(weights[1][name])}
    assert decayed == {name for name in trainable if weights[0][name].ndim >= 2 and weights[0][name].any()}
