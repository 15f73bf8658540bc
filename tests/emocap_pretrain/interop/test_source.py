from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import emocap_torchvision
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import ModelConfig
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts.layout import OPENAI_MEAN, OPENAI_STD
from emocap_pretrain.interop.load import LoadReport, load_weights
from emocap_pretrain.interop.source import open_source
from emocap_pretrain.model.pair import TowerPair

emocap_torchvision.install()
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel  # noqa: E402 - after emocap_torchvision

VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2} | {
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2} | {
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "eos_token_id": 99,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Draws weights that are large enough to show a wrong activation or a wrong norm."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


def loaded(folder: Path, settings: Mapping[str, Any] | None = None) -> tuple[TowerPair, LoadReport]:
    source = open_source(str(folder))
    model = ModelConfig.model_validate({**source.layout.settings, **(settings or {}), "from": str(folder)})
    pair = TowerPair.of(model, ObjectiveConfig.model_validate({}), Vocabulary(100, 0))
    return pair.eval(), load_weights(pair, source)


def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def texts() -> Texts:
    """Returns three texts of different length. The first has an end token in the middle, before its own end."""
    ids = torch.randint(3, 99, (3, 10), generator=torch.Generator().manual_seed(2))
    ids[0, 4], ids[0, 6], ids[1, 9], ids[2, 7] = 99, 99, 99, 99
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 7:], mask[2, 8:] = False, False
    return Texts(ids.masked_fill(~mask, 0), mask)


def vectors(found: Any) -> Tensor:
    return torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=20)
    spread(CLIPModel(config)).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_vectors_of_a_clip_of_transformers_are_those_of_transformers(clip_folder):
    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    ours, report = loaded(clip_folder)
    statistics = (torch.tensor(each).view(1, 3, 1, 1) for each in (OPENAI_MEAN, OPENAI_STD))
    mean, std = statistics
    pixels = (images() / 255 - mean) / std
    tokens = texts()
    torch.testing.assert_close(
        ours.embed_images(images()), vectors(theirs.get_image_features(pixel_values=pixels)), atol=1e-5, rtol=0
    )
    given = theirs.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask.long())
    torch.testing.assert_close(ours.embed_texts(tokens), vectors(given), atol=1e-5, rtol=0)
    assert report.copied == ("to_patch.weight from to_image.weight", "to_sentence.weight from to_text.weight")
    assert report.fresh == ("local_logit_scale",)


@torch.no_grad()
def test_the_vectors_of_a_siglip_of_transformers_are_those_of_transformers(tmp_path):
    config = SiglipConfig(text_config={**TEXT, "projection_size": 64}, vision_config=VISION)
    theirs = spread(SiglipModel(config))
    theirs.save_pretrained(tmp_path)
    ours, report = loaded(tmp_path)
    pixels = (images() / 255 - 0.5) / 0.5
    tokens = texts()
    padded = torch.zeros(3, 16, dtype=torch.int64)
    padded[:, :10] = tokens.ids
    torch.testing.assert_close(
        ours.embed_images(images()), vectors(theirs.get_image_features(pixel_values=pixels)), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        ours.embed_texts(tokens), vectors(theirs.get_text_features(input_ids=padded)), atol=1e-5, rtol=0
    )
    assert report.left_out == ("logit_bias",)


@pytest.mark.parametrize("fault", ["renamed", "missing", "transposed", "extra"])
def test_weights_that_do_not_fit_are_refused_by_name(clip_folder, tmp_path, fault):
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    tensors = load_file(clip_folder / "model.safetensors")
    if fault == "transposed":
        tensors[name] = tensors[name].T.contiguous()
    elif fault == "extra":
        tensors[name := "vision_model.encoder.layers.2.mlp.fc1.weight"] = torch.zeros(96, 64)
    else:
        tensor = tensors.pop(name)
        tensors |= {f"{name}.old": tensor} if fault == "renamed" else {}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        loaded(tmp_path)


def test_a_hub_name_without_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as refused:
        open_source("openai/clip-vit-base-patch32")
    assert "model.from=openai/clip-vit-base-patch32" in str(refused.value)
    assert "\n" not in str(refused.value)
