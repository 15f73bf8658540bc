from collections.abc import Callable

import pytest
import torch
from pretrain_fakes import changed
from torch import nn

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.training.build import build_model

DEEP = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def pair(config: Config, **changes: object) -> TowerPair:
    deep = changed(config, model__image__options=DEEP, model__text__architecture__layers=2)
    return build_model(changed(deep, **{f"model__{key}": value for key, value in changes.items()}), Vocabulary(320, 0))


def trained(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def test_without_a_setting_everything_is_trained(tiny_config: Config) -> None:
    model = pair(tiny_config)
    assert trained(model) == set(dict(model.named_parameters()))


def test_a_number_freezes_the_embeddings_and_as_many_blocks(tiny_config: Config) -> None:
    everything = trained(pair(tiny_config))
    stem = {f"image.backbone.{name}" for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")}
    stem.add("image.backbone.patch_embed.proj.bias")
    assert everything - trained(pair(tiny_config, image__freeze=0)) == stem
    frozen = everything - trained(pair(tiny_config, image__freeze=2))
    assert frozen - stem == {name for name in everything if ".blocks.0." in name or ".blocks.1." in name}
    text = everything - trained(pair(tiny_config, text__freeze=1))
    assert {name.split(".")[2] for name in text} == {"embeddings", "encoder"}
    assert {name.split(".")[4] for name in text if ".encoder." in name} == {"0"}


def test_all_freezes_the_tower_and_leaves_its_projections(tiny_config: Config) -> None:
    model = pair(tiny_config, image__freeze="all")
    assert not any(name.startswith("image.") for name in trained(model))
    assert {"to_image.weight", "to_patch.weight", "logit_scale"} <= trained(model)


def test_projections_and_scales_are_frozen_by_their_names(tiny_config: Config) -> None:
    everything = trained(pair(tiny_config))
    assert everything - trained(pair(tiny_config, freeze=["to_image", "logit_scale"])) == {
        "to_image.weight",
        "logit_scale",
    }


@pytest.mark.parametrize(("tower", "depth", "last"), [("image", 3, 3), ("image", 12, 3), ("text", 3, 3)])
def test_a_depth_that_leaves_nothing_of_the_tower_is_one_clear_line(
    tiny_config: Config, tower: str, depth: int, last: int
) -> None:
    with pytest.raises(ConfigError) as refused:
        pair(tiny_config, **{f"{tower}__freeze": depth})
    assert str(refused.value) == (
        f"model.{tower}.freeze={depth}: the depths of this tower are 0 (embeddings) to {last}, so at most {last - 1} "
        f"leaves something to train; to freeze the whole tower set model.{tower}.freeze=all."
    )


def test_a_bias_that_the_objective_does_not_have_cannot_be_frozen(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="has logit_bias, but the objective has none; leave it out"):
        pair(tiny_config, freeze=["logit_bias"])


@pytest.mark.parametrize("freeze", [True, -1, "none", 1.5])
def test_a_value_that_names_no_depth_is_refused(tiny_config: Config, freeze: object) -> None:
    with pytest.raises(ValueError, match="freeze"):
        changed(tiny_config, model__image__freeze=freeze)


def dropping(config: Config, freeze: object) -> TowerPair:
    options = {**DEEP, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}
    return pair(config, image__options=options, image__patch_dropout=0.5, image__freeze=freeze)


@pytest.mark.parametrize("mode", [lambda model: model, lambda model: model.eval().train()])
def test_a_frozen_tower_drops_nothing_in_training(tiny_config: Config, mode: Callable[[TowerPair], TowerPair]) -> None:
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    frozen, free = mode(dropping(tiny_config, "all")), mode(dropping(tiny_config, None))
    assert frozen.training
    assert not frozen.image.training
    assert frozen.text.training
    first, second = (frozen.image.encode_image(images) for _ in range(2))
    assert first[0].equal(second[0])
    assert first[1].shape[1] == 4
    assert not first[0].requires_grad
    assert free.image.encode_image(images)[1].shape[1] == 2
