"""Tests that the LLaVA model in transformers can use an exported image tower as its vision tower."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_fakes import model as tiny_llama
from pretrain_fakes import changed
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPTextConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
    TimmWrapperConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.interop.export.registry import FORMATS
from emocap_pretrain.interop.export.vision_towers import vision_model
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.model.timm_image import TimmImageTower, timm
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


@pytest.mark.parametrize(
    ("tower", "options", "select", "kind"),
    [
        ("vit_tiny_patch16_224", SIZES, "default", "ViTModel"),
        ("vit_base_patch16_siglip_224", SIZES, "full", "SiglipVisionModel"),
    ],
)
def test_llava_reads_a_vision_transformer_beside_any_text_tower(tiny_config, tmp_path, tower, options, select, kind):
    ours = exported(tiny_config, tmp_path, tower, options, model__text__pooling="eos")
    pair = AutoModel.from_pretrained(tmp_path).eval()
    assert type(pair.vision_model).__name__ == kind
    built = llava(pair.vision_model.config, select=select)
    built.model.vision_tower.load_state_dict(pair.vision_model.state_dict())
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        given = torch.from_numpy(images).permute(0, 3, 1, 2)
        torch.testing.assert_close(pixels, (given - ours.mean) / ours.std, rtol=0, atol=1e-5)
        seen = built.model.vision_tower(pixels, output_hidden_states=True)
        torch.testing.assert_close(seen.pooler_output, ours.encode_image(given)[0], rtol=0, atol=1e-5)
        # LLaVA may read the output of any block, before the last norm.
        expected = ours.backbone.forward_intermediates(
            pixels, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
        assert len(seen.hidden_states) == len(expected) + 1 == 3
        for theirs, block in zip(seen.hidden_states[1:], expected, strict=True):
            patches, prefix = block if isinstance(block, tuple) else (block, block[:, :0])
            torch.testing.assert_close(theirs, torch.cat([prefix, patches], dim=1), rtol=0, atol=1e-5)
        features = built.get_image_features(pixel_values=pixels, vision_feature_layer=-1).pooler_output
        projected = built.model.multi_modal_projector(seen.hidden_states[-1][:, -4:])
        torch.testing.assert_close(torch.stack(list(features)), projected, rtol=0, atol=1e-6)
        ids = torch.tensor([[1, *[IMAGE_TOKEN] * 4, 7, 8]] * 2)
        mask = torch.ones_like(ids)
        written = built.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=mask, max_new_tokens=3, do_sample=False
        )
        logits = built(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
    assert torch.equal(written[:, ids.shape[1]], logits[:, -1].argmax(-1))
    assert not torch.allclose(logits[0], logits[1])


def test_a_tower_of_clip_beside_any_text_tower_becomes_a_vision_model_of_clip():
    settings = {"name": "vit_base_patch16_clip_224", "pixels": 16, "options": {**SIZES, "act_layer": "quick_gelu"}}
    ours = TimmImageTower(ImageTowerConfig.model_validate(settings)).eval()
    found = vision_model(ours)
    assert found is not None
    text = CLIPTextConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    pair = VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig(vision_config=found.settings, text_config=text.to_dict())
    ).eval()
    assert isinstance(pair.vision_model, CLIPVisionModel)
    pair.load_state_dict({**pair.state_dict(), **found.weights})
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seen = pair.vision_model((images - ours.mean) / ours.std).pooler_output
        torch.testing.assert_close(seen, ours.encode_image(images)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"init_values": 0.1}),
        ("vit_tiny_patch16_224", {"no_embed_class": True}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}),
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        ("vit_tiny_patch16_224", {"block_fn": "ResPostBlock"}),
    ],
)
def test_a_vision_transformer_that_computes_something_else_stays_a_model_of_timm(tiny_config, tmp_path, tower, options):
    if "block_fn" in options:
        options = {"block_fn": getattr(timm.models.vision_transformer, options["block_fn"])}
    backbone = timm.create_model(tower, img_size=16, num_classes=0, **SIZES, **options)
    image = TimmImageTower(ImageTowerConfig.model_validate({"name": tower, "pixels": 16, "options": SIZES}))
    assert vision_model(image) is not None
    image.backbone = backbone
    assert vision_model(image) is None


def test_the_tower_of_any_other_export_gives_llava_no_sequence_of_patches(tiny_config, tmp_path):
    exported(tiny_config, tmp_path, "vit_tiny_patch16_224", {**SIZES, "global_pool": "avg"}, model__text__pooling="eos")
    vision = AutoConfig.from_pretrained(tmp_path).vision_config
    assert isinstance(vision, TimmWrapperConfig)
    built = llava(vision, select="full")
    with torch.inference_mode():
        hidden = built.model.vision_tower(torch.zeros(1, 3, 16, 16), output_hidden_states=True).hidden_states[-1]
    assert hidden.shape == (1, 32, 2, 2)  # A map of features, where LLaVA reads a sequence.
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * 4, 7, 8]])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        built(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16), attention_mask=torch.ones_like(ids))
