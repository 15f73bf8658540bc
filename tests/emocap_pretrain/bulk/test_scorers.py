"""Tests the vectors and scores of images, with a real checkpoint of tiny towers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import emocap_pretrain as emocap
from emocap_pretrain.bulk.compute import Computation
from emocap_pretrain.bulk.scorers import EmbeddingScorer, ModelSource, PredictionScorer, Prompts, digest_of
from emocap_pretrain.bulk.sentences import SentenceColumnConfig
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import CheckpointError, ConfigError
from emocap_pretrain.inference.model import EmotionModel

CLASSES = {"joy": ("joy", "delight"), "fear": ("fear",), "calm": ("calm",)}
BROWS = ("the brows are drawn together", "the brows are raised")
SENTENCES = {
    "brows": SentenceColumnConfig(sentences=BROWS),
    "happy": SentenceColumnConfig(sentences=("a happy face",), aligned_with="image"),
}
PROMPTS = Prompts(EvaluationConfig().templates, CLASSES, SENTENCES)


@pytest.fixture
def crops():
    return list(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8))


def test_a_vector_is_that_of_the_python_interface(model, crops):
    found = EmbeddingScorer(model).columns(crops)["embedding"]
    assert (found == model.embed_images(crops)).all()


def test_the_scores_of_classes_are_those_of_the_python_interface(model, crops):
    found = PredictionScorer(model, PROMPTS).columns(crops)
    expected = model.classify(crops, CLASSES)
    assert np.stack([found[f"p_{name}"] for name in CLASSES], 1) == pytest.approx(expected.probabilities, abs=1e-6)
    assert found["predicted"] == expected.best
    assert found["confidence"] == pytest.approx(expected.probabilities.max(1), abs=1e-6)


def test_the_fields_are_the_columns_in_their_order(model, crops):
    for scorer in (EmbeddingScorer(model), PredictionScorer(model, PROMPTS)):
        assert [field.name for field in scorer.fields] == list(scorer.columns(crops))


def test_a_sentence_of_an_image_is_scored_by_its_cosine(model, crops):
    found = PredictionScorer(model, PROMPTS).columns(crops)["s_happy"]
    assert found == pytest.approx(model.embed_images(crops) @ model.embed_texts(["a happy face"])[0], abs=1e-6)


def test_a_local_sentence_is_scored_by_its_attention_over_the_patches(model, crops):
    maps = [[model.attention_map(crop, sentence) for sentence in BROWS] for crop in crops]
    expected = [np.mean([(each.weights * each.cosines).sum() for each in row]) for row in maps]
    assert PredictionScorer(model, PROMPTS).columns(crops)["s_brows"] == pytest.approx(expected, abs=1e-6)


def test_an_image_of_one_colour_has_the_local_score_0_if_such_patches_are_left_out(model, crops, monkeypatch):
    monkeypatch.setattr(model, "_embedder", replace(model.embedder, local=replace(model.local, contrast=8)))
    grey = np.full((16, 16, 3), 90, np.uint8)
    found = PredictionScorer(model, PROMPTS).columns([grey, crops[0]])["s_brows"]
    assert found[0] == 0
    assert abs(found[1]) > 1e-4


def test_without_a_local_loss_the_sentences_are_compared_with_images(run_without_local_url, crops):
    model = emocap.load(run_without_local_url, device="cpu")
    scorer = PredictionScorer(model, PROMPTS)
    assert scorer.aligned_with == {"brows": "image", "happy": "image"}
    cosines = model.embed_images(crops) @ model.embed_texts(list(BROWS)).T
    assert scorer.columns(crops)["s_brows"] == pytest.approx(cosines.mean(1), abs=1e-6)
    patches = {"brows": SentenceColumnConfig(sentences=BROWS, aligned_with="patches")}
    with pytest.raises(ConfigError, match=r"brows: the model was trained without local sentences"):
        PredictionScorer(model, Prompts(PROMPTS.templates, CLASSES, patches))


def test_a_single_class_is_refused(model):
    with pytest.raises(ConfigError, match="at least two classes"):
        PredictionScorer(model, Prompts(PROMPTS.templates, {"joy": ("joy",)}, {}))


def test_the_digest_depends_on_every_weight(run_url):
    model = emocap.load(run_url, device="cpu")
    before = digest_of(model)
    whole = EmotionModel(replace(model.embedder, crop="whole"))
    assert digest_of(whole) != before
    assert digest_of(emocap.load(run_url, device="cpu")) == before
    with torch.no_grad():
        next(iter(model.embedder.model.image.parameters())).view(-1)[-1] += 1e-3
    assert digest_of(model) != before


def test_a_worker_refuses_another_model_than_the_one_of_the_command(run_url, tmp_path):
    source = ModelSource(run_url, device="cpu")
    computation = Computation(
        model=source, digest=digest_of(source.load()), prompts=None, folder=str(tmp_path), has_videos=False
    )
    assert callable(computation.started())
    with pytest.raises(CheckpointError, match=r"another model than when the command began: give its step") as caught:
        replace(computation, digest="of another step").started()
    assert "\n" not in str(caught.value)


def test_a_model_that_was_not_trained_with_patches_is_compared_with_images_by_default(model, monkeypatch):
    monkeypatch.setattr(model, "_embedder", replace(model.embedder, local=replace(model.local, is_trained=False)))
    patches = {"eyes": SentenceColumnConfig(sentences=BROWS, aligned_with="patches")}
    scorer = PredictionScorer(model, Prompts(PROMPTS.templates, CLASSES, {**SENTENCES, **patches}))
    assert scorer.aligned_with == {"brows": "image", "happy": "image", "eyes": "patches"}
