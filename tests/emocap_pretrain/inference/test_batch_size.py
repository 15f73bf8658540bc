"""Tests that the batch size changes vectors by at most the bound that docs/python.md states."""

import numpy as np
import pytest
import torch

from emocap_pretrain.config.model import ImageTowerConfig, TextArchitectureConfig, TextTowerConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.model import ROUNDING, EmotionModel
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_text import TransformersTextTower

WORDS = ["a clearly happy face", "the brows are drawn together", "a neutral face", "anger, fear, joy"]
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
SIZES = (1, 7, 64)


def model_of(image: ImageTowerConfig, text: TextArchitectureConfig, embedding: int) -> EmotionModel:
    torch.manual_seed(0)
    tokenizer = Tokenizer.trained_on(WORDS, 400)
    towers = (
        TimmImageTower(image),
        TransformersTextTower(TextTowerConfig(architecture=text), tokenizer.vocabulary, weights=False),
    )
    return EmotionModel(Embedder(TowerPair(*towers, embedding=embedding).eval(), tokenizer))


@pytest.mark.parametrize(
    ("image", "text", "embedding"),
    [
        (
            ImageTowerConfig(name="vit_tiny_patch16_224", pixels=16, options=TINY),
            TextArchitectureConfig(width=32, layers=1, heads=2),
            16,
        ),
        (
            ImageTowerConfig(name="vit_base_patch16_224", pixels=32, options={"depth": 4}),
            TextArchitectureConfig(layers=2),
            512,
        ),
    ],
    ids=["tiny", "ViT-B of 4 blocks"],
)
def test_the_batch_size_changes_vectors_by_less_than_the_stated_bound(image, text, embedding):
    model = model_of(image, text, embedding)
    random = np.random.default_rng(0)
    pictures = list(random.integers(0, 256, (64, image.pixels, image.pixels, 3), dtype=np.uint8))
    pictures[0][:], pictures[1][:] = 0, 255
    # Texts of different lengths: the padding of a text depends on the others of its batch.
    texts = [" ".join(random.choice(WORDS, 1 + number % 5)) for number in range(64)]
    for embed, inputs in ((model.embed_images, pictures), (model.embed_texts, texts)):
        alone, *others = (embed(inputs, batch_size=size) for size in SIZES)
        assert max(np.abs(alone - each).max() for each in others) < ROUNDING
        # Vectors of different inputs differ by far more, so the comparison would notice mixed-up rows.
        assert np.abs(alone - alone[[1, *range(63)]]).max() > 100 * ROUNDING
