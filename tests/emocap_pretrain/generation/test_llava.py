"""Tests that the LLaVA model in transformers can use an exported image tower as its vision tower."""

from pathlib import Path
from typing import Any

import pytest
import torch
from generation_fakes import model as tiny_llama
from pretrain_fakes import changed
from transformers import (
    AutoConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
    TimmWrapperConfig,
)

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.interop.export.registry import FORMATS
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.training.build import build_model

TOKENS, IMAGE_TOKEN = 60, 5
SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TEXT = {"family": "siglip", "width": 32, "layers": 1, "heads": 2, "positions": 40, "activation": "gelu"}
SIGLIP = {
    "model__embedding": 32,
    "model__project_images": False,
    "model__text_bias": True,
    "model__text__pooling": "last",
    "model__text__architecture": {**TEXT, "norm_eps": 1e-6},
    "objective__kind": "sigmoid",
}


def exported(config: Config, folder: Path, tower: str, options: dict[str, Any], **more: Any) -> Any:
    """Exports a model with random weights in the format `transformers`, and returns the image tower of the model."""
    config = changed(config, model__image={"name": tower, "pixels": 16, "options": options}, **more)
    tokenizer = Tokenizer.trained_on(["a happy face"], 300)
    torch.manual_seed(0)
    built = build_model(config, tokenizer.vocabulary, weights=False).eval()
    FORMATS["transformers"].write(Restored(config, built, tokenizer, 7, "abc", "d" * 64), folder)
    return built.image


def llava(vision: Any, *, select: str) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=vision,
        text_config=tiny_llama(TOKENS).config,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy=select,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    ("tower", "options", "kind", "select", "more"),
    [
        (
            "vit_base_patch16_clip_224",
            {**SIZES, "act_layer": "quick_gelu"},
            CLIPVisionModel,
            "default",
            {},
        ),
        ("vit_base_patch16_siglip_224", SIZES, SiglipVisionModel, "full", SIGLIP),
    ],
)
def test_llava_sees_the_patches_of_our_tower(tiny_config, tmp_path, tower, options, kind, select, more):
    ours = exported(tiny_config, tmp_path, tower, options, **more)
    vision = kind.from_pretrained(tmp_path)
    built = llava(vision.config, select=select)
    missing = built.model.vision_tower.load_state_dict(vision.state_dict())
    assert not missing.missing_keys
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (images - ours.mean) / ours.std
    with torch.inference_mode():
        hidden = built.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        # The tower of LLaVA ends before the last norm, which our tower has.
        seen = vision.post_layernorm(hidden)[:, -4:]
        assert torch.allclose(seen, ours.encode_image(images)[1], atol=1e-4)
        ids = torch.tensor([[1, *[IMAGE_TOKEN] * 4, 7, 8]] * 2)
        found = built(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    assert torch.isfinite(found).all()
    assert not torch.allclose(found[0], found[1])


def test_the_tower_of_any_other_export_gives_llava_no_sequence_of_patches(tiny_config, tmp_path):
    exported(tiny_config, tmp_path, "vit_tiny_patch16_224", SIZES, model__text__pooling="eos")
    vision = AutoConfig.from_pretrained(tmp_path).vision_config
    assert isinstance(vision, TimmWrapperConfig)
    built = llava(vision, select="full")
    with torch.inference_mode():
        hidden = built.model.vision_tower(torch.zeros(1, 3, 16, 16), output_hidden_states=True).hidden_states[-1]
    assert hidden.shape == (1, 32, 2, 2)  # A map of features, where LLaVA reads a sequence.
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * 4, 7, 8]])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        built(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16), attention_mask=torch.ones_like(ids))
