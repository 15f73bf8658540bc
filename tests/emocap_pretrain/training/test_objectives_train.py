"""Tests that the objectives in the comments of the tiny recipe train."""

import math
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from emocap_shards.stream import Stream
from pretrain_fakes import changed, stand_alone
from safetensors.torch import save_file

from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.config.objective import Kind
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.datasets import train_tokenizer
from emocap_pretrain.data.loader import batches
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.image_weights import check_teacher, load_teacher
from emocap_pretrain.model.teacher import Teacher
from emocap_pretrain.model.timm_image import timm
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_collate, build_engine, build_model
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.snapshot import fill

ALONE = RankGroup(Rank(), "cpu", None)
RECIPE = Path(__file__).parents[3] / "launch/recipes/tiny.yaml"
LINES = re.findall(
    r"^  # ((?:kind|kind_by_part|teacher|patch_mask): .*?)(?:  # .*)?$",
    RECIPE.read_text(encoding="utf-8"),
    re.MULTILINE,
)
STEPS = 3
TOWER = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """Returns settings that mine positives; without mining, mil_nce equals infonce."""
    return changed(tiny_config, objective__mining={"guide": "image", "top_k": 2})


@pytest.fixture
def line(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Returns the settings in a line of the recipe. A teacher is replaced by a small one with weights in a file."""
    settings: dict[str, Any] = yaml.safe_load(request.param)
    if "teacher" in settings or settings.get("kind") == "soft":
        settings["teacher"] = settings.get("teacher", {}) | teacher_in(tmp_path)
    return settings | ({"mining": None} if settings.get("kind") == "soft" else {})


def teacher_in(folder: Path) -> dict[str, object]:
    torch.manual_seed(7)
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **TOWER)
    save_file(tower.state_dict(), folder / "teacher.safetensors")
    return {"name": "vit_tiny_patch16_224", "options": TOWER, "pretrained": str(folder / "teacher.safetensors")}


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


@pytest.fixture
def tokenizer(config: Config) -> Tokenizer:
    return train_tokenizer(config.data, config.model.text.vocabulary)


@pytest.fixture
def data(config: Config, tokenizer: Tokenizer) -> list[Batch]:
    """Returns real batches, whose images have a black corner like aligned faces."""
    stream = Stream(url=config.data.url, global_batch=config.global_batch)
    found = [delivery.batch for delivery in islice(batches(stream, build_collate(config, tokenizer)), STEPS)]
    for batch in found:
        batch.images[:, :, :8, :8] = 0
    return found


def with_objective(config: Config, settings: Mapping[str, object], **changes: object) -> Config:
    """Returns the config with other settings of its objective."""
    return changed(config, **{f"objective__{key}": value for key, value in settings.items()}, **changes)


def engine_of(config: Config, tokenizer: Tokenizer) -> Engine:
    torch.manual_seed(0)
    return build_engine(config, build_model(config, tokenizer.vocabulary), ALONE)


def trained(engine: Engine, data: list[Batch]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in engine.train(batch).items()} for batch in data]


def test_the_recipe_has_a_line_for_each_setting() -> None:
    kinds = {f"kind: {kind}" for kind in get_args(Kind) if kind != "infonce"}
    assert kinds <= set(LINES)
    assert {line.split(":")[0] for line in LINES} == {"kind", "kind_by_part", "teacher", "patch_mask"}


@pytest.mark.parametrize("line", LINES, indirect=True)
def test_three_steps_with_a_line_of_the_recipe_train(
    config: Config, tokenizer: Tokenizer, data: list[Batch], line: dict[str, object]
) -> None:
    engine = engine_of(with_objective(config, line), tokenizer)
    rows = trained(engine, [data[0]] * STEPS)
    assert all(math.isfinite(row["loss"]) and row["skipped"] == 0.0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    plain = trained(engine_of(config, tokenizer), data[:1])
    assert rows[0]["loss"] != plain[0]["loss"]


@pytest.mark.parametrize("line", LINES, indirect=True)
def test_cached_representations_give_the_same_steps(
    config: Config, tokenizer: Tokenizer, data: list[Batch], line: dict[str, object]
) -> None:
    config = with_objective(config, line)
    at_once = trained(engine_of(config, tokenizer), data)
    in_passes = trained(engine_of(changed(config, micro_batch=3), tokenizer), data)
    for row, wanted in zip(in_passes, at_once, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-4)


def test_the_bias_of_a_sigmoid_is_learned_from_its_first_value_and_resumes_to_the_bit(
    config: Config, tokenizer: Tokenizer, data: list[Batch], tmp_path: Path
) -> None:
    config = with_objective(config, {"kind": "sigmoid"})
    engine = engine_of(config, tokenizer)
    rows = trained(engine, data[:2])
    assert rows[0]["bias"] == -10.0
    assert rows[1]["bias"] != -10.0
    snapshot = engine.snapshot()
    snapshot.write(tmp_path)
    snapshot.release()
    model = build_model(config, tokenizer.vocabulary)
    fill(model, tmp_path / WEIGHTS)
    again = build_engine(config, model, ALONE)
    again.load(tmp_path, engine.layout, 2)
    assert trained(again, data[2:]) == trained(engine, data[2:])


def test_a_bias_exists_only_where_a_sigmoid_reads_it(config: Config, tokenizer: Tokenizer) -> None:
    def names(config: Config) -> set[str]:
        return set(build_model(config, tokenizer.vocabulary).state_dict())

    plain = names(config)
    assert names(with_objective(config, {"kind": "mil_nce"})) == plain
    assert names(with_objective(config, {"kind": "sigmoid"})) - plain == {"logit_bias"}
    # The local loss has no bias, and a part of weight 0 has no loss.
    assert names(with_objective(config, {"kind": "sigmoid", "global": 0.0, "summary": 0.0})) == plain


def test_a_teacher_is_frozen_and_in_no_checkpoint(
    config: Config, tokenizer: Tokenizer, data: list[Batch], tmp_path: Path
) -> None:
    settings = {"kind": "soft", "mining": None, "teacher": teacher_in(tmp_path)}
    config = with_objective(config, settings)
    teacher = Teacher(config.objective.teacher, pixels=config.model.image.pixels)
    load_teacher(teacher)
    before = teacher(data[0].images)
    engine = engine_of(config, tokenizer)
    trained(engine, data)
    assert not any(each.requires_grad for each in teacher.parameters())
    assert torch.equal(teacher(data[0].images), before)
    snapshot = engine.snapshot()
    assert set(snapshot.weights) == set(build_model(config, tokenizer.vocabulary).state_dict())


def test_a_model_is_built_without_its_teacher(config: Config, tokenizer: Tokenizer) -> None:
    """A run must be evaluated without the teacher's file."""
    teacher = {"name": "vit_tiny_patch16_224", "pretrained": "/nowhere/teacher.safetensors"}
    gone = with_objective(config, {"kind": "soft", "mining": None, "teacher": teacher})
    names = set(build_model(gone, tokenizer.vocabulary).state_dict())
    assert names == set(build_model(config, tokenizer.vocabulary).state_dict())
    with pytest.raises(ConfigError, match=r"objective\.teacher\.pretrained=/nowhere/teacher\.safetensors: give 'hub'"):
        check_teacher(gone.objective.teacher, pixels=gone.model.image.pixels)


def test_the_teacher_and_not_the_model_says_which_images_are_alike(
    config: Config, tokenizer: Tokenizer, data: list[Batch], tmp_path: Path
) -> None:
    settings = {"teacher": teacher_in(tmp_path)}
    teacher = Teacher(with_objective(config, settings).objective.teacher, pixels=config.model.image.pixels)
    load_teacher(teacher)
    vectors = teacher(data[0].images)
    similarity = vectors @ vectors.T
    half = float(similarity.median())
    mining = {"guide": "image", "threshold": half}
    config = with_objective(config, {**settings, "mining": mining})
    identity = data[0].texts["global"].identity
    assert identity is not None
    positives = ((similarity >= half) | (identity[:, None] == identity)).sum(1).float().mean()
    (row,) = trained(engine_of(config, tokenizer), data[:1])
    assert row["global/positives"] == pytest.approx(float(positives))
    (alone,) = trained(engine_of(with_objective(config, {"teacher": None}), tokenizer), data[:1])
    assert alone["global/positives"] != row["global/positives"]
