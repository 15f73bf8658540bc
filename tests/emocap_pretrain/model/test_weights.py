import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emocap_pretrain.config.schema import ImageTowerConfig, TextTowerConfig
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.timm_image import TimmImageTower, check_image_weights, timm
from emocap_pretrain.model.transformers_text import TransformersTextTower, check_text_weights
from emocap_pretrain.model.weights import Fit

# After the towers, which let torchvision import beside a CPU build of torch.
from transformers import BertConfig, BertForMaskedLM, BertModel, CLIPConfig, CLIPModel  # isort: skip

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(vocab_size=50, max_position_embeddings=128, **TEXT)


def test_the_fit_names_missing_unexpected_and_reshaped_weights():
    fit = Fit.of(
        {"a": (1,), "b": (2, 3), "c": (4,)},
        {"a": (1,), "b": (3, 2), "d": (5,), "head.x": (6,)},
        ignore=lambda name: name.startswith("head."),
    )
    assert fit == Fit(missing=("c",), unexpected=("d",), reshaped=(("b", (3, 2), (2, 3)),))
    with pytest.raises(ConfigError) as caught:
        fit.require("key=file", "the tower T", "Mend it.")
    assert str(caught.value) == (
        "key=file: these weights do not fill the tower T: 1 missing (c); 1 unexpected (d); "
        "1 of another shape (b has [3, 2], the tower [2, 3]). Mend it."
    )


def test_a_message_names_a_few_of_many_and_counts_the_others():
    fit = Fit(missing=tuple(f"block.{number}" for number in range(9)))
    with pytest.raises(ConfigError, match=r"9 missing \(block\.0, block\.1, block\.2, block\.3 and 5 more\)"):
        fit.require("key", "T", "")


def image_file(folder: Path, tensors: dict[str, torch.Tensor], name: str = "weights.safetensors") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return str(file)


def image_settings(file: str, name: str = "vit_tiny_patch16_224", *, pixels: int = 32, **options) -> ImageTowerConfig:
    return ImageTowerConfig(name=name, pixels=pixels, options=VIT | options, pretrained=file)


def vit_weights(*, classes: int = 0, pixels: int = 32, **options) -> dict[str, torch.Tensor]:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, img_size=pixels, **(VIT | options))
    return model.state_dict()


def image_refusal(settings: ImageTowerConfig) -> str:
    """Returns the error message of the run, which must be that of the dry run."""
    messages = []
    for build in (TimmImageTower, check_image_weights):
        with pytest.raises(ConfigError) as caught:
            build(settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def test_an_image_tower_with_more_blocks_than_its_weights_is_refused_with_their_names(tmp_path):
    message = image_refusal(image_settings(image_file(tmp_path, vit_weights()), depth=3))
    assert message.startswith(f"model.image.pretrained={tmp_path}/weights.safetensors: these weights do not fill")
    assert "12 missing (blocks.2.attn.proj.bias, " in message


def test_an_image_tower_with_fewer_blocks_than_its_weights_is_refused_with_their_names(tmp_path):
    message = image_refusal(image_settings(image_file(tmp_path, vit_weights()), depth=1))
    assert "12 unexpected (blocks.1.attn.proj.bias, " in message
    assert "missing" not in message


def test_image_weights_of_another_shape_are_refused_with_both_shapes(tmp_path):
    message = image_refusal(image_settings(image_file(tmp_path, vit_weights()), embed_dim=32))
    assert " of another shape (blocks.0.attn.proj.bias has [16], the tower [32]" in message


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet10t"])
def test_image_weights_with_foreign_names_alone_are_refused_with_those_names(tmp_path, name):
    file = image_file(tmp_path, {"stranger.weight": torch.zeros(3), "stranger.bias": torch.zeros(3)})
    message = image_refusal(ImageTowerConfig(name=name, pixels=32, pretrained=file))
    assert "2 unexpected (stranger.bias, stranger.weight)" in message
    assert "missing (" in message


def test_image_weights_without_any_tensor_or_of_a_broken_file_are_refused(tmp_path):
    assert "there is no tensor in the file" in image_refusal(image_settings(image_file(tmp_path, {})))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a header")
    assert "is not a readable .safetensors file" in image_refusal(image_settings(str(broken)))


def test_a_classifier_head_in_the_image_weights_is_ignored(tmp_path):
    weights = vit_weights(classes=7)
    tower = TimmImageTower(image_settings(image_file(tmp_path, weights)))
    assert tower.notes == ()
    assert torch.equal(tower.backbone.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_under_the_prefix_of_a_wrapper_are_read(tmp_path, prefix):
    weights = {prefix + name: value for name, value in vit_weights().items()}
    settings = image_settings(image_file(tmp_path, weights))
    assert check_image_weights(settings) == ()
    assert torch.equal(TimmImageTower(settings).backbone.cls_token, weights[f"{prefix}cls_token"])


def test_a_position_embedding_that_timm_resizes_is_a_note(tmp_path):
    settings = image_settings(image_file(tmp_path, vit_weights(pixels=32)), pixels=48)
    note = "model.image.pretrained: timm has resized pos_embed [1, 17, 16] to [1, 37, 16]"
    assert TimmImageTower(settings).notes == check_image_weights(settings) == (note,)


def test_the_comparison_does_not_change_torch_or_the_tower(tmp_path):
    before = torch.nn.Module.load_state_dict
    settings = image_settings(image_file(tmp_path, vit_weights()))
    assert check_image_weights(settings) == ()
    tower = TimmImageTower(settings)
    image_refusal(image_settings(str(settings.pretrained), depth=3))
    assert torch.nn.Module.load_state_dict is before
    assert "state_dict" not in tower.backbone.pretrained_cfg
    assert all(not parameter.is_meta for parameter in tower.parameters())


def openai_layout(folder: Path, name: str) -> str:
    """Saves the weights of an image tower and a text tower under the names of OpenAI's CLIP, and returns the file."""
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
    plain = image_settings(file, "vit_base_patch32_clip_224")
    (note,) = TimmImageTower(plain).notes
    assert note.endswith("set model.image.name=vit_base_patch32_clip_quickgelu_224")
    assert check_image_weights(plain) == (note,)
    assert TimmImageTower(image_settings(file, "vit_base_patch32_clip_quickgelu_224")).notes == ()


def test_weights_whose_name_shows_no_origin_are_loaded_without_a_note(tmp_path):
    assert (
        TimmImageTower(image_settings(openai_layout(tmp_path, "w.safetensors"), "vit_base_patch32_clip_224")).notes
        == ()
    )


def test_metadata_of_the_file_show_the_origin_as_well(tmp_path):
    file = openai_layout(tmp_path, "w.safetensors")
    save_file(load_file(file), file, metadata={"tag": "openai"})
    assert len(TimmImageTower(image_settings(file, "vit_base_patch32_clip_224")).notes) == 1


def test_weights_from_the_hub_are_compared_when_the_run_starts():
    (note,) = check_image_weights(ImageTowerConfig(name="vit_tiny_patch16_224", pretrained="hub"))
    assert note.endswith("compared with the tower when the run starts")
    (note,) = check_text_weights(text_settings("somebody/encoder"))
    assert note.endswith("compared with the tower when the run starts")


def text_settings(folder: str | Path) -> TextTowerConfig:
    return TextTowerConfig.model_validate({"pretrained": str(folder), "pooling": "mean"})


def text_refusal(folder: Path) -> str:
    messages = []
    for build in (
        lambda: TransformersTextTower(text_settings(folder), Vocabulary(50, 0)),
        lambda: load_nothing(folder),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def load_nothing(folder: Path) -> tuple[str, ...]:
    return check_text_weights(text_settings(folder))


def described(folder: Path, **changes) -> Path:
    """Changes config.json in the folder, so that it no longer fits the weights, and returns the folder."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_a_text_tower_with_more_layers_than_its_weights_is_refused_with_their_names(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path)
    message = text_refusal(described(tmp_path, num_hidden_layers=3))
    assert message.startswith(f"model.text.pretrained={tmp_path}: these weights do not fill")
    assert "16 missing (encoder.layer.2.attention.output.LayerNorm.bias, " in message


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_text_tower_with_fewer_layers_than_its_weights_is_refused_with_their_names(tmp_path, kind):
    kind(BERT).save_pretrained(tmp_path)
    message = text_refusal(described(tmp_path, num_hidden_layers=1))
    assert "16 unexpected (" in message
    assert "encoder.layer.1.attention.output.LayerNorm.bias, " in message


def test_text_weights_of_another_shape_are_refused_with_both_shapes(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path)
    message = text_refusal(described(tmp_path, vocab_size=60))
    assert "1 of another shape (embeddings.word_embeddings.weight has [50, 16], the tower [60, 16])" in message


def test_a_head_in_the_text_weights_is_ignored_with_a_note(tmp_path, capfd):
    model = BertForMaskedLM(BERT)
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    tower = TransformersTextTower(text_settings(tmp_path), Vocabulary(50, 0))
    assert tower.notes == load_nothing(tmp_path)
    assert tower.notes == (
        f"model.text.pretrained: cls in {tmp_path} are left out: they are not a part of the text tower",
    )
    assert torch.equal(tower.backbone.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)
    assert capfd.readouterr() == ("", "")


def test_a_clip_folder_gives_its_text_tower_and_one_line(tmp_path, capfd):
    vision = TEXT | {"image_size": 32, "patch_size": 16}
    text = TEXT | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    tower = TransformersTextTower(text_settings(tmp_path), Vocabulary(50, 0))
    (note,) = tower.notes
    assert note.startswith("model.text.pretrained: logit_scale, text_projection, vision_model, visual_projection in ")
    assert load_nothing(tmp_path) == (note,)
    assert torch.equal(
        tower.backbone.embeddings.token_embedding.weight, model.text_model.embeddings.token_embedding.weight
    )
    assert capfd.readouterr() == ("", "")


def test_weights_in_several_files_are_compared_by_their_index(tmp_path):
    BertModel(BERT).save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert load_nothing(tmp_path) == ()
    assert "16 missing (" in text_refusal(described(tmp_path, num_hidden_layers=3))
