import math

import pytest
import torch
from emocap_shards.stream import Stream
from pretrain_fakes import objective_of

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.training.build import build_collate, build_model


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.trained_on(["a happy face", "raised cheeks and a wide smile"], 300)


@pytest.fixture
def batch(tiny_config: Config, tokenizer: Tokenizer) -> Batch:
    samples = Stream(url=tiny_config.data.url, global_batch=6).read(range(6))
    collate = build_collate(tiny_config, tokenizer)
    return collate([collate.prepare(sample) for sample in samples])


def pair(config: Config, tokenizer: Tokenizer, **changes) -> TowerPair:
    torch.manual_seed(0)
    model = config.model.model_copy(update=changes)
    return build_model(config.model_copy(update={"model": model}), tokenizer.vocabulary)


def test_every_embedding_is_a_unit_vector_of_the_shared_space(tiny_config, tokenizer, batch):
    embeddings = pair(tiny_config, tokenizer)(batch)
    assert embeddings.image.shape == embeddings.texts["global"].shape == embeddings.texts["summary"].shape == (6, 16)
    assert embeddings.patches.shape == (6, 4, 16)
    assert embeddings.texts["local"].shape == (len(batch.texts["local"].ids), 16)
    for part in (embeddings.image, embeddings.patches, *embeddings.texts.values()):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part.norm(dim=-1), torch.ones(part.shape[:-1]))


def test_the_scales_start_at_the_given_value(tiny_config, tokenizer, batch):
    embeddings = pair(tiny_config, tokenizer, initial_scale=20.0)(batch)
    assert {name: scale.shape for name, scale in embeddings.scales.items()} == {"image": (), "patches": ()}
    assert [scale.item() for scale in embeddings.scales.values()] == pytest.approx([20, 20])


def test_under_bf16_the_embeddings_are_still_float32_unit_vectors(tiny_config, tokenizer, batch):
    config = tiny_config.model_copy(update={"engine": tiny_config.engine.model_copy(update={"precision": "bf16"})})
    exact, rough = pair(tiny_config, tokenizer)(batch), pair(config, tokenizer)(batch)
    assert rough.image.dtype == torch.float32
    torch.testing.assert_close(rough.image.norm(dim=-1), torch.ones(6))
    assert 0 < (rough.image - exact.image).abs().max() < 0.05


@pytest.mark.parametrize("over", [0.0, 1e-6, 0.5])
def test_a_scale_above_its_bound_is_clamped_and_can_decrease_again(tiny_config, tokenizer, batch, over):
    model = pair(tiny_config, tokenizer)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100.0) + over)
    for direction in (1.0, -1.0):
        model.zero_grad()
        scale = model(batch).scales["image"]
        assert scale.item() == pytest.approx(100)
        (direction * scale).backward()
        assert model.logit_scale.grad is not None
        # A descent step goes against the gradient: a positive one leads back inside.
        passes = direction > 0 or over == 0
        assert model.logit_scale.grad.item() == pytest.approx(direction * 100 if passes else 0)


def test_a_scale_below_its_bound_has_the_plain_gradient(tiny_config, tokenizer, batch):
    model = pair(tiny_config, tokenizer, initial_scale=30.0)
    (-model(batch).scales["image"]).backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.item() == pytest.approx(-30)


def test_every_parameter_receives_a_gradient(tiny_config, tokenizer, batch):
    model = pair(tiny_config, tokenizer)
    objective_of(tiny_config)(model(batch), batch, 0).loss.backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_a_rank_without_rows_has_gradients_of_zero_for_every_parameter(tiny_config, tokenizer):
    empty = build_collate(tiny_config, tokenizer)([])
    model = pair(tiny_config, tokenizer)
    objective_of(tiny_config)(model(empty), empty, 0).loss.backward()
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


def test_recomputed_activations_change_neither_loss_nor_gradients(tiny_config, tokenizer, batch):
    results = []
    for recomputed in (False, True):
        model = pair(tiny_config, tokenizer, checkpoint_activations=recomputed).train()
        loss = objective_of(tiny_config)(model(batch), batch, 0).loss
        loss.backward()
        results.append([loss.detach(), *(value.grad for value in model.parameters())])
    for plain, replayed in zip(*results, strict=True):
        torch.testing.assert_close(replayed, plain)


def test_evaluation_gives_the_same_vectors_as_training_does(tiny_config, tokenizer, batch):
    model = pair(tiny_config, tokenizer).eval()
    embeddings = model(batch)
    torch.testing.assert_close(model.embed_images(batch.images), embeddings.image)
    torch.testing.assert_close(model.embed_texts(batch.texts["global"]), embeddings.texts["global"])
    torch.testing.assert_close(model.embed_texts(batch.texts["summary"]), embeddings.texts["summary"])


def test_the_prompt_length_and_pixels_are_those_of_the_run(tiny_config, tokenizer):
    model = pair(tiny_config, tokenizer)
    assert (model.pixels, model.prompt_length) == (16, 16)
