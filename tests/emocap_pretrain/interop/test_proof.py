"""Compares our vectors after `model.from` with those of the libraries that have written the models."""

import pytest
import torch
from families import END, FAMILIES, Foreign
from torch import Tensor
from torch.nn.functional import normalize

from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.interop.load import LoadReport, load_weights
from emocap_pretrain.interop.source import open_source
from emocap_pretrain.model.pair import TowerPair

CLOSE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Foreign:
    return FAMILIES[request.param](tmp_path_factory.mktemp("family"))


def loaded(foreign: Foreign, pixels: int | None = None) -> tuple[TowerPair, LoadReport]:
    source = open_source(str(foreign.path), activation=foreign.activation)
    settings = {**source.layout.settings, "from": str(foreign.path)}
    if pixels:
        settings["image"] = {**settings["image"], "pixels": pixels}
    kind = "infonce" if foreign.bias is None else "sigmoid"
    objective = ObjectiveConfig.model_validate({"kind": kind})
    pair = TowerPair.of(ModelConfig.model_validate(settings), objective, Vocabulary(100, 0))
    return pair.eval(), load_weights(pair, source)


def images(pixels: int) -> Tensor:
    return torch.randint(0, 256, (3, 3, pixels, pixels), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def texts() -> Texts:
    """Returns texts of different lengths. The first has an end token in the middle, and the last has no padding."""
    ids = torch.randint(8, END, (4, 16), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([7, 10, 8, 16])
    ids[0, 4] = END
    ids[torch.arange(4), lengths - 1] = END
    mask = torch.arange(16) < lengths[:, None]
    return Texts(ids.masked_fill(~mask, 0), mask)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """Checks that vectors are equal after they are scaled to unit length."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(normalize(ours, dim=-1), normalize(theirs, dim=-1), atol=CLOSE, rtol=0)


@torch.no_grad()
def test_images_patches_texts_and_scales_are_those_of_the_other_library(family):
    pair, _ = loaded(family)
    pixels = images(family.pixels)
    pooled, patches = family.images(pixels)
    seen = pixels[:, :, : pair.pixels, : pair.pixels]
    assert_equal(pair.embed_images(seen), pooled)
    assert_equal(pair.image.encode_image(seen)[1], patches)
    assert_equal(pair.embed_texts(texts()), family.texts(texts()))
    assert float(pair.logit_scale) == pytest.approx(family.scale)
    assert family.bias is None or float(pair.logit_bias) == pytest.approx(family.bias)


@torch.no_grad()
@pytest.mark.parametrize("pixels", [16, 40])
def test_with_images_of_another_size_the_vectors_are_those_of_the_resized_model(family, pixels):
    if family.at is None:
        pytest.skip("open_clip does not resize the positions of timm's towers")
    pair, report = loaded(family, pixels)
    pooled, patches = family.at(pixels).images(images(pixels))
    assert_equal(pair.embed_images(images(pixels)), pooled)
    assert_equal(pair.image.encode_image(images(pixels))[1], patches)
    assert len(report.resized) == 1


@torch.no_grad()
def test_shorter_batches_give_the_same_vectors(family):
    pair, _ = loaded(family)
    every = texts()
    short = Texts(every.ids[:3, :10], every.mask[:3, :10])
    torch.testing.assert_close(pair.embed_texts(short), pair.embed_texts(every)[:3], atol=CLOSE, rtol=0)
