"""Every objective that a config can ask for trains: the lines that the tiny recipe holds as comments."""

import math
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from emocap_shards.stream import Stream
from pretrain_fakes import changed, stand_alone

from emocap_pretrain.batch import Batch
from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.schema import Config
from emocap_pretrain.encoders.pair import TowerPair
from emocap_pretrain.engine.engine import Engine
from emocap_pretrain.engine.snapshot import fill
from emocap_pretrain.feed import train_tokenizer
from emocap_pretrain.loader import batches
from emocap_pretrain.runtime import Rank
from emocap_pretrain.tokenizer import Tokenizer
from emocap_pretrain.world import World

ALONE = World(Rank(), "cpu", None)
RECIPE = Path(__file__).parents[3] / "launch/recipes/tiny.yaml"
LINES = re.findall(r"^  # ((?:kind|kind_by_part|patch_mask): .*)$", RECIPE.read_text(encoding="utf-8"), re.MULTILINE)
STEPS = 3


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """Mines, because own pairs alone make mil_nce the same as infonce."""
    return changed(tiny_config, objective__mining={"guide": "text", "threshold": 0.5})


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


@pytest.fixture
def tokenizer(config: Config) -> Tokenizer:
    return Tokenizer.from_json(train_tokenizer(config))


@pytest.fixture
def data(config: Config, tokenizer: Tokenizer) -> list[Batch]:
    """Real batches, whose images have a black corner as aligned faces do."""
    stream = Stream(url=config.data.url, global_batch=config.global_batch)
    found = [delivery.batch for delivery in islice(batches(config, stream, tokenizer, pin=False), STEPS)]
    for batch in found:
        batch.images[:, :, :8, :8] = 0
    return found


def with_line(config: Config, line: str, **changes: object) -> Config:
    """The config with a line of the recipe in its objective."""
    settings = {f"objective__{key}": value for key, value in yaml.safe_load(line).items()}
    return changed(config, **settings, **changes)


def engine_of(config: Config, tokenizer: Tokenizer) -> Engine:
    torch.manual_seed(0)
    return Engine.of(TowerPair.of(config, tokenizer.vocabulary), config, ALONE)


def trained(engine: Engine, data: list[Batch]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in engine.train(batch).items()} for batch in data]


def test_the_recipe_has_a_line_for_each_kind_that_is_no_default() -> None:
    assert {"kind: mil_nce", "kind: sigmoid", "kind_by_part: {summary: sigmoid}", "patch_mask: {contrast: 8}"} <= set(
        LINES
    )


@pytest.mark.parametrize("line", LINES)
def test_three_steps_with_a_line_of_the_recipe_train(
    config: Config, tokenizer: Tokenizer, data: list[Batch], line: str
) -> None:
    engine = engine_of(with_line(config, line), tokenizer)
    rows = trained(engine, [data[0]] * STEPS)
    assert all(math.isfinite(row["loss"]) and row["skipped"] == 0.0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    plain = trained(engine_of(config, tokenizer), data[:1])
    assert rows[0]["loss"] != plain[0]["loss"]


@pytest.mark.parametrize("line", LINES)
def test_cached_representations_give_the_same_steps(
    config: Config, tokenizer: Tokenizer, data: list[Batch], line: str
) -> None:
    config = with_line(config, line)
    at_once = trained(engine_of(config, tokenizer), data)
    in_passes = trained(engine_of(changed(config, micro_batch=3), tokenizer), data)
    for row, wanted in zip(in_passes, at_once, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-4)


def test_the_bias_of_a_sigmoid_is_learned_from_its_first_value_and_resumes_to_the_bit(
    config: Config, tokenizer: Tokenizer, data: list[Batch], tmp_path: Path
) -> None:
    config = with_line(config, "kind: sigmoid")
    engine = engine_of(config, tokenizer)
    rows = trained(engine, data[:2])
    assert rows[0]["bias"] == -10.0
    assert rows[1]["bias"] != -10.0
    snapshot = engine.snapshot()
    snapshot.write(tmp_path)
    snapshot.release()
    model = TowerPair.of(config, tokenizer.vocabulary)
    fill(model, tmp_path / WEIGHTS)
    again = Engine.of(model, config, ALONE)
    again.load(tmp_path, engine.layout, 2)
    assert trained(again, data[2:]) == trained(engine, data[2:])


def test_a_bias_exists_only_where_a_sigmoid_reads_it(config: Config, tokenizer: Tokenizer) -> None:
    def names(config: Config) -> set[str]:
        return set(TowerPair.of(config, tokenizer.vocabulary).state_dict())

    plain = names(config)
    assert names(with_line(config, "kind: mil_nce")) == plain
    assert names(with_line(config, "kind: sigmoid")) - plain == {"logit_bias"}
    # The local loss has no bias, and a part of weight 0 has no loss.
    without_images = {"objective__global": 0.0, "objective__summary": 0.0}
    assert names(with_line(config, "kind: sigmoid", **without_images)) == plain
