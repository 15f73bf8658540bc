import pytest
import torch
from pretrain_fakes import changed
from torch import nn

from emocap_pretrain.config.model import ImageTowerConfig, LoraConfig, TextTowerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.lora import add_adapters, merge_adapters
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_text import TransformersTextTower
from emocap_pretrain.training.build import build_model

VOCABULARY = Vocabulary(320, 0)


def batch(rows: int = 4) -> Batch:
    source = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, 3, 16, 16), generator=source, dtype=torch.uint8)
    ids = torch.randint(1, 320, (rows, 7), generator=source)
    texts = Texts(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(images, {"global": texts, "summary": texts, "local": Texts(ids, texts.mask, torch.arange(rows))})


def pair(config: Config, **changes: object) -> TowerPair:
    torch.manual_seed(0)
    return build_model(changed(config, **{f"model__{key}": value for key, value in changes.items()}), VOCABULARY)


def adapted(config: Config, **lora: object) -> TowerPair:
    """Returns a model with adapters in both towers. Their matrices B are not zero, so the adapters have an effect."""
    model = pair(config, image__lora={"rank": 3, **lora}, text__lora={"rank": 2, **lora})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def test_a_tower_with_new_adapters_computes_what_it_did_without_them(tiny_config: Config) -> None:
    plain, model = pair(tiny_config), pair(tiny_config, image__lora={}, text__lora={})
    model.load_state_dict(plain.state_dict(), strict=False)
    for one, other in zip(plain(batch()).tensors(), model(batch()).tensors(), strict=True):
        torch.testing.assert_close(one, other)


def test_adapters_projections_and_scales_are_trained_and_nothing_else(tiny_config: Config) -> None:
    names = trained(adapted(tiny_config))
    assert {name for name in names if not name.startswith(("to_", "logit_", "local_"))} == {
        name for name in names if ".lora_A." in name or ".lora_B." in name
    }
    layers = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    block, layer = "image.backbone.blocks.0", "text.backbone.encoder.layers.0"
    assert layers == {
        *(f"{block}.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        *(f"{layer}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
        *(f"{layer}.mlp.{name}" for name in ("fc1", "fc2")),
    }


def test_the_weights_of_the_towers_keep_their_names_and_load_into_either_model(tiny_config: Config) -> None:
    plain, model = pair(tiny_config), adapted(tiny_config)
    weights = model.state_dict()
    assert {name for name in weights if ".lora_" not in name} == plain.state_dict().keys()
    again = adapted(tiny_config)
    again.load_state_dict(weights)
    assert all(weight.equal(weights[name]) for name, weight in again.state_dict().items())
    plain.load_state_dict({name: weight for name, weight in weights.items() if ".lora_" not in name})
    del weights["image.backbone.blocks.0.attn.qkv.weight"]
    with pytest.raises(
        RuntimeError, match=r"Missing key\(s\) in state_dict: .*blocks\.0\.attn\.qkv\.base_layer\.weight"
    ):
        again.load_state_dict(weights)


def test_a_merged_model_is_a_plain_one_and_computes_the_same_to_a_millionth(tiny_config: Config) -> None:
    model = adapted(tiny_config).eval()
    with torch.no_grad():
        before, untouched = model(batch()), pair(tiny_config).eval()(batch())
        merge_adapters(model)
        after = model(batch())
    assert (before.image - untouched.image).abs().max() > 1e-3
    for one, other in zip(before.tensors(), after.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    plain = pair(tiny_config)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(each) for each in model.modules()] == [type(each) for each in plain.modules()]


def test_adapters_have_the_depth_of_their_layers(tiny_config: Config) -> None:
    model = adapted(tiny_config)
    for tower in (model.image, model.text):
        depths = tower.parameter_depths()
        assert depths.keys() == dict(tower.named_parameters()).keys()
        assert {depth for name, depth in depths.items() if ".lora_" in name} == {1}


def test_targets_are_the_ends_of_the_names_of_layers(tiny_config: Config) -> None:
    model = pair(tiny_config, image__lora={"targets": ["qkv", "mlp.fc1"]})
    layers = {name.partition(".lora_")[0] for name in trained(model) if ".lora_" in name}
    assert layers == {"image.backbone.blocks.0.attn.qkv", "image.backbone.blocks.0.mlp.fc1"}


@pytest.mark.parametrize("target", ["kv", "attn", "norm", "patch_embed.proj"])
def test_a_target_that_names_no_linear_layer_is_one_clear_line(tiny_config: Config, target: str) -> None:
    with pytest.raises(ConfigError) as refused:
        pair(tiny_config, image__lora={"targets": ["attn.qkv", target]})
    assert str(refused.value) == (
        f"model.image.lora.targets: no linear layer of the tower ends in {target!r}; its layers end in attn.proj, "
        "attn.qkv, mlp.fc1, mlp.fc2."
    )


def test_a_tower_without_linear_layers_cannot_have_adapters() -> None:
    with torch.device("meta"):
        tower = TimmImageTower(ImageTowerConfig(name="convnext_atto", pixels=32))
        with pytest.raises(
            ConfigError, match=r"no linear layer of attention or of an MLP; set model\.image\.freeze inst"
        ):
            add_adapters(tower, LoraConfig(), "model.image.lora")


def test_lora_and_freeze_of_one_tower_exclude_each_other(tiny_config: Config) -> None:
    for tower in ("image", "text"):
        with pytest.raises(ValueError, match="lora freezes the tower's own weights already"):
            pair(tiny_config, **{f"{tower}__lora": {}, f"{tower}__freeze": 0})


@pytest.mark.parametrize("lora", [{"rank": 0}, {"rank": 2000}, {"targets": []}, {"targets": ["a|b"]}, {"alpha": 0}])
def test_settings_out_of_bounds_are_refused(lora: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(lora))):
        LoraConfig.model_validate(lora)


SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}
IMAGES = {
    "vit_tiny_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "swinv2_tiny_window8_256": {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "img_size": 64},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "conv_mlp": False},
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_adapter_of_an_image_tower_gets_a_gradient(name: str) -> None:
    pixels = 56 if "patch14" in name else 64
    tower = TimmImageTower(ImageTowerConfig(name=name, pixels=pixels, options=IMAGES[name]))
    add_adapters(tower, LoraConfig(rank=2), "model.image.lora")
    pooled, patches = tower.encode_image(torch.zeros((1, 3, pixels, pixels), dtype=torch.uint8))
    assert_adapters_have_gradients(tower, pooled.sum() + patches.sum())


def assert_adapters_have_gradients(tower: nn.Module, result: torch.Tensor) -> None:
    result.backward()
    adapters = {name: each for name, each in tower.named_parameters() if ".lora_" in name}
    assert adapters
    assert not [name for name, each in adapters.items() if each.grad is None]


ENCODERS = {
    "bert": {"num_attention_heads": 2, "num_hidden_layers": 1},
    "distilbert": {"n_heads": 2, "n_layers": 1, "dim": 32, "hidden_dim": 64},
    "mpnet": {"num_attention_heads": 2, "num_hidden_layers": 1},
    "albert": {"num_attention_heads": 2, "num_hidden_layers": 1, "embedding_size": 16},
    "modernbert": {"num_attention_heads": 2, "num_hidden_layers": 1},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_adapter_of_a_text_tower_gets_a_gradient(tiny_config: Config, kind: str) -> None:
    numbers = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    architecture = {"model_type": kind, "pad_token_id": 0, **numbers, **ENCODERS[kind]}
    settings = TextTowerConfig(pretrained="elsewhere", pooling="mean")
    settings = settings.model_copy(update={"lengths": tiny_config.model.text.lengths})
    tower = TransformersTextTower(settings, VOCABULARY, weights=False, architecture=architecture)
    add_adapters(tower, LoraConfig(rank=2), "model.text.lora")
    assert_adapters_have_gradients(tower, tower.encode_text(batch().texts["global"]).sum())
