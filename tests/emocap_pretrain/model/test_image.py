import pytest
import torch

from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.timm_image import TimmImageTower

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def vit(**settings) -> TimmImageTower:
    return tower("vit_tiny_patch16_224", VIT, **settings)


def tower(name: str, options: dict, *, pixels: int = 32, **settings) -> TimmImageTower:
    torch.manual_seed(0)
    return TimmImageTower(ImageTowerConfig(name=name, pixels=pixels, options=options, **settings))


def images(rows: int, pixels: int = 32) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (rows, 3, pixels, pixels), dtype=torch.uint8)


def test_a_transformer_gives_a_vector_for_the_image_and_one_for_each_patch():
    model = vit()
    pooled, patches = model.encode_image(images(3))
    assert (pooled.shape, patches.shape, model.width) == ((3, 16), (3, 16, 16), 16)


def test_the_patches_leave_out_the_class_token():
    model = vit().eval()
    features = model.backbone.forward_features((images(1).float() - model.mean) / model.std)
    pooled, patches = model.encode_image(images(1))
    assert torch.equal(patches, features[:, 1:])
    assert torch.equal(pooled, features[:, 0])


def test_the_input_is_normalised_by_the_models_own_statistics():
    model = vit()
    statistics = model.backbone.pretrained_cfg
    assert model.mean.flatten().tolist() == pytest.approx([255 * value for value in statistics["mean"]])
    assert model.std.flatten().tolist() == pytest.approx([255 * value for value in statistics["std"]])
    assert not {"mean", "std"} & set(model.state_dict())


def test_no_rows_give_no_vectors_and_every_parameter_a_gradient_of_zero():
    model = vit()
    pooled, patches = model.encode_image(images(0))
    assert (pooled.shape, patches.shape) == ((0, 16), (0, 16, 16))
    (pooled.sum() + patches.sum()).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_patch_dropout_leaves_patches_out_in_training_only():
    model = vit(patch_dropout=0.5)
    assert model.train().encode_image(images(2))[1].shape == (2, 8, 16)
    assert model.eval().encode_image(images(2))[1].shape == (2, 16, 16)


def test_the_cells_of_a_convolutional_towers_last_map_are_its_patches():
    model = tower("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]}, pixels=64).eval()
    pooled, patches = model.encode_image(images(2, 64))
    grid = model.backbone.forward_features((images(2, 64).float() - model.mean) / model.std)
    assert grid.shape == (2, model.width, 2, 2)
    assert pooled.shape == (2, model.width)
    assert patches.shape == (2, 4, model.width)
    assert torch.equal(patches[:, 1], grid[:, :, 0, 1])


def test_a_map_with_its_channels_last_gives_the_same_order_of_patches():
    options = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4, "img_size": 32}
    model = tower("swin_tiny_patch4_window7_224", options).eval()
    grid = model.backbone.forward_features((images(2).float() - model.mean) / model.std)
    patches = model.encode_image(images(2))[1]
    assert (grid.shape, patches.shape) == ((2, 4, 4, 16), (2, 16, 16))
    assert torch.equal(patches[:, 1], grid[:, 0, 1])


def test_batch_norm_is_refused_from_scratch():
    with pytest.raises(ConfigError, match=r"^model\.image: resnet10t has batch norm, .* layer norm"):
        tower("resnet10t", {}, pixels=64)


def test_the_batch_norm_of_a_tower_with_pretrained_weights_is_frozen():
    model = tower("resnet10t", {}, pixels=64, pretrained="weights").train()
    statistics = model.backbone.conv1[1].running_mean.clone()
    one, _ = model.encode_image(images(3, 64)[:1])
    many, _ = model.encode_image(images(3, 64))
    assert torch.allclose(one, many[:1], atol=1e-6)
    assert torch.equal(model.backbone.conv1[1].running_mean, statistics)


def test_the_pooled_vector_may_be_wider_than_those_of_the_patches():
    model = tower("mobilenetv3_small_050", {}, pixels=64, pretrained="weights")
    pooled, patches = model.encode_image(images(2, 64))
    assert (pooled.shape, model.width) == ((2, 1024), 1024)
    assert (patches.shape, model.patch_width) == ((2, 4, 288), 288)


def test_depths_ascend_from_the_pixels_through_the_blocks_to_the_last_norm():
    model = tower("vit_tiny_patch16_224", VIT | {"depth": 3})
    depths = model.parameter_depths()
    assert depths.keys() == {name for name, _ in model.named_parameters()}
    names = ("patch_embed.proj.weight", "blocks.0.mlp.fc1.bias", "blocks.1.attn.qkv.weight", "norm.bias")
    assert [depths[f"backbone.{name}"] for name in names] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("vit_tiny_patch16_224", {"options": {"patch_size": 0}}, "by zero"),
        ("vit_tinny", {}, "Unknown model"),
        ("vit_tiny_patch16_224", {"options": {"dpeth": 1}}, "dpeth"),
        ("vit_tiny_patch16_224", {"options": {"embed_dim": 33, "num_heads": 2}}, "divisible"),
        ("vit_tiny_patch16_224", {"options": {"num_classes": 3}}, "num_classes"),
        ("resnet10t", {"patch_dropout": 0.5}, "patch_drop_rate"),
    ],
)
def test_a_model_that_timm_cannot_build_is_refused_in_one_line(name, settings, told):
    with pytest.raises(ConfigError) as caught:
        TimmImageTower(ImageTowerConfig(name=name, pixels=32, **settings))
    message = str(caught.value)
    assert message.startswith("model.image")
    assert name in message
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize(("pixels", "nearest"), [(36, 32), (38, 40), (3, 8)])
def test_pixels_that_patches_do_not_cover_are_refused_with_the_nearest_that_they_do(pixels, nearest):
    with pytest.raises(ConfigError, match=rf"pixels={pixels} is not a multiple of the patch size 8; .* {nearest}\.$"):
        vit(pixels=pixels)
    assert vit(pixels=nearest).eval().encode_image(images(1, nearest))[1].shape == (1, (nearest // 8) ** 2, 16)
