"""CLIP and SigLIP models of transformers: tiny, with random weights, in float64."""

from typing import Any

import torch

import emocap_torchvision

ROWS = 6
LAST = 31
ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**ENCODER, "vocab_size": LAST + 1, "max_position_embeddings": 8, "eos_token_id": LAST}
VISION = {**ENCODER, "image_size": 8, "patch_size": 4}


def batch() -> dict[str, Any]:
    """Returns the inputs of a forward pass of both models."""
    source = torch.Generator().manual_seed(3)
    ids = torch.randint(3, LAST, (ROWS, 8), generator=source)
    ids[:, -1] = LAST
    return {"input_ids": ids, "pixel_values": torch.randn(ROWS, 3, 8, 8, generator=source, dtype=torch.float64)}


def models() -> tuple[Any, Any]:
    """Returns a CLIP model and a SigLIP model."""
    # The import takes seconds, which collecting the tests should not.
    emocap_torchvision.install()
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12))
    siglip = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
    return clip.double().eval(), siglip.double().eval()
