import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation import prompt_set, run_tasks
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.results import ConfusionMatrix, TaskResult

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@dataclass(frozen=True)
class Words:
    texts: Sequence[str]

    def to(self, device: str) -> "Words":  # noqa: ARG002
        return self


@dataclass
class FakeTokenizer:
    asked: list[tuple[tuple[str, ...], int]] = field(default_factory=list)

    def encode(self, texts: Sequence[str], length: int) -> Any:
        self.asked.append((tuple(texts), length))
        return Words(texts)


@dataclass
class ColourModel:
    """Embeds an image as its mean colour, and a text as the sum of `meaning` over its words."""

    meaning: Mapping[str, Sequence[float]] = field(default_factory=lambda: COLOURS)
    pixels: int = 8
    prompt_length: int = 5
    logit_scale: Tensor = field(default_factory=lambda: torch.zeros(1))
    scale: float = 4.0

    def embed_images_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 8, 8)
        means = images.float().mean((2, 3))
        return torch.nn.functional.normalize(means, dim=-1), means

    def embed_texts(self, tokens: Any) -> Tensor:
        rows = [sum(np.array(value) for word, value in self.meaning.items() if word in text) for text in tokens.texts]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows)).float(), dim=-1)


def evaluate(settings: EvaluationConfig, model: Any = None, tokenizer: Any = None) -> TaskResult:
    embedder = Embedder(model or ColourModel(), tokenizer or FakeTokenizer())
    (result,) = run_tasks.evaluate(settings, embedder, RankGroup(Rank(), "cpu", None), url="faces")
    return result


def classify(settings: EvaluationConfig, model: Any = None, tokenizer: Any = None) -> ConfusionMatrix:
    (matrix,) = evaluate(settings, model, tokenizer).confusion_matrices
    return matrix


def scores(result: TaskResult) -> dict[str, float]:
    return {score.name: score.value for score in result.scores}


def packed(folder: Path, samples: Sequence[tuple[str, str | float | None]]) -> str:
    """Packs a dataset of images of one colour each, with or without a label, and returns its URL."""

    def record(number: int, colour: str, label: str | float | None) -> Record:
        file = io.BytesIO()
        Image.new("RGB", (12, 10), COLOURS[colour]).save(file, "PNG")
        labels = {} if label is None else {"emotion": label}
        return Record(f"k{number}", file.getvalue(), "png", Caption("c", (), ""), labels)

    write_shards((record(number, *sample) for number, sample in enumerate(samples)), str(folder), samples_per_shard=3)
    return str(folder)


def test_an_image_belongs_to_the_class_whose_prompts_it_is_closest_to(tmp_path):
    url = packed(tmp_path, [("red", "red"), ("blue", "blue"), ("blue", "red"), ("green", "green"), ("red", "red")])
    matrix = classify(EvaluationConfig(url=url, batch=2))
    assert matrix.classes == ("blue", "green", "red")
    assert matrix.counts == ((1, 0, 0), (0, 1, 0), (1, 0, 2))


def test_the_area_between_two_classes_that_occur_is_that_of_the_difference_of_their_cosines(tmp_path):
    url = packed(tmp_path, [("red", "red"), ("blue", "blue"), ("green", "red"), ("blue", "red")])
    words = {"red": ("red",), "blue": ("blue",), "green": ("green",)}
    result = evaluate(EvaluationConfig(url=url, classes=words))
    area = next(score for score in result.scores if score.name == "auc")
    # The margins of blue are -1, 1, 0 and 1: the blue face is above two red ones, and equal to the third.
    assert area.value == pytest.approx(2.5 / 3)
    assert area.baseline is not None
    assert area.baseline.note == "blue against red"
    assert area.interval is not None
    low, high = area.interval
    assert 0 <= low <= area.value <= high <= 1
    three = packed(tmp_path / "three", [(name, name) for name in words])
    assert "auc" not in scores(evaluate(EvaluationConfig(url=three, classes=words)))


def test_samples_without_the_label_are_left_out(tmp_path):
    url = packed(tmp_path, [("red", "red"), ("blue", None), ("green", ""), ("blue", "blue")])
    assert classify(EvaluationConfig(url=url, batch=2)).counts == ((1, 0), (0, 1))


def test_the_label_0_is_a_label(tmp_path):
    url = packed(tmp_path, [("red", 0.0), ("blue", 1.0)])
    matrix = classify(EvaluationConfig(url=url, classes={"0": ("red",), "1": ("blue",)}))
    assert matrix.counts == ((1, 0), (0, 1))


def test_a_whole_number_is_one_label_however_it_is_written(tmp_path):
    url = packed(tmp_path, [("red", 0.0), ("red", "0"), ("red", "0.0"), ("blue", 1), ("green", 0.5)])
    words = {0: ["red"], 1.0: "blue", "0.5": ["green"]}
    matrix = classify(EvaluationConfig.model_validate({"url": url, "classes": words}))
    assert matrix.classes == ("0", "1", "0.5")
    assert matrix.counts == ((3, 0, 0), (0, 1, 0), (0, 0, 1))
    assert classify(
        EvaluationConfig(url=url), ColourModel({"0.5": COLOURS["green"], "0": COLOURS["red"], "1": COLOURS["blue"]})
    ).classes == ("0", "0.5", "1")


def test_classes_are_described_by_their_words_in_every_template(tmp_path):
    url = packed(tmp_path, [("red", "warm"), ("green", "cold"), ("blue", "cold")])
    tokenizer = FakeTokenizer()
    classes = {"cold": ("green", "blue"), "warm": ("red",), "absent": ("red", "red", "green")}
    settings = EvaluationConfig(url=url, classes=classes, templates=("a {} b", "{}!"))
    matrix = classify(settings, tokenizer=tokenizer)
    assert matrix.classes == ("cold", "warm", "absent")
    assert matrix.counts == ((2, 0, 0), (0, 1, 0), (0, 0, 0))
    assert tokenizer.asked[0] == (("a green b", "a blue b", "green!", "blue!"), 5)


def test_cosines_or_embeddings_are_averaged_over_templates_as_the_settings_say(tmp_path):
    """Class z is closest to the image (1, 0, 0) if cosines are averaged, and class y if vectors are averaged.

    The prompts of class x have the cosines 1 and 0 with the image: the mean is 0.5, and the cosine of the mean vector
    is 0.71. For class y the cosines are 0.6 and 0.6, and the cosine of the mean vector (0.6, 0.4, 0.4) is 0.73. For
    class z the cosines and the cosine of the mean vector are 0.65.
    """
    url = packed(tmp_path, [("red", "x"), ("red", "y"), ("red", "z")])
    meaning = {"x1": (1, 0, 0), "x2": (0, 1, 0), "y1": (0.6, 0.8, 0), "y2": (0.6, 0, 0.8), "z": (0.65, 0.76, 0)}
    classes = {name: (name,) for name in "xyz"}
    settings = EvaluationConfig(url=url, classes=classes, templates=("{}1", "{}2"))
    assert np.argmax(classify(settings, ColourModel(meaning)).counts[0]) == 2
    embeddings = settings.model_copy(update={"ensemble": "embeddings"})
    assert np.argmax(classify(embeddings, ColourModel(meaning)).counts[0]) == 1
    with pytest.raises(ValidationError, match="'logits' or 'embeddings'"):
        EvaluationConfig.model_validate({"ensemble": "mean"})


def test_the_calibration_error_is_that_of_the_softmax_at_the_scale_of_the_model(tmp_path):
    """Each image has the cosine 1 with one of three classes and 0 with the others.

    So the largest probability is the same for all images, and three of the four predictions are right.
    """
    url = packed(tmp_path, [("red", "red"), ("blue", "blue"), ("blue", "red"), ("green", "green")])
    for scale in (0.5, 4.0):
        probability = np.exp(scale) / (np.exp(scale) + 2)
        found = scores(evaluate(EvaluationConfig(url=url), ColourModel(scale=scale)))
        assert found["ece"] == pytest.approx(abs(0.75 - probability), abs=1e-6)


def test_every_set_of_prompts_that_knows_the_classes_is_scored_from_the_same_images(tmp_path, monkeypatch):
    samples = [("red", "anger"), ("blue", "sadness"), ("blue", "anger")]
    meaning = {"anger": COLOURS["red"], "sad": COLOURS["blue"], "person": (1, 1, 1), "": (1, 0, 0)}
    url = packed(tmp_path / "known", samples)
    passes = []
    images = ColourModel.embed_images_and_pooled
    monkeypatch.setattr(
        ColourModel, "embed_images_and_pooled", lambda self, batch: passes.append(1) or images(self, batch)
    )
    found = scores(evaluate(EvaluationConfig(url=url, every_prompt_set=True), ColourModel(meaning)))
    assert len(passes) == 1
    by_set = {name.removeprefix("uar_of_set/"): value for name, value in found.items() if "uar_of_set/" in name}
    assert set(by_set) == set(prompt_set.names())
    assert (found["uar_lowest_set"], found["uar_highest_set"]) == (min(by_set.values()), max(by_set.values()))
    one = scores(evaluate(EvaluationConfig(url=url, prompts="exp_clip_five"), ColourModel(meaning)))
    assert by_set["exp_clip_five"] == one["uar"]
    assert "uar_lowest_set" not in one
    unknown = packed(tmp_path / "unknown", [("red", "red"), ("blue", "blue")])
    found = scores(evaluate(EvaluationConfig(url=unknown, every_prompt_set=True)))
    assert "uar_of_set/exp_clip_five" in found
    assert "uar_of_set/descriptions" not in found


def test_sets_of_prompts_take_the_names_of_classes_that_have_whole_prompts(tmp_path, monkeypatch):
    """A sentence in a template, such as "a photo of A face that beams.", would be no prompt."""
    url = packed(tmp_path, [("red", "anger"), ("blue", "sadness")])
    whole = {"anger": ("A face that glares.",), "sadness": ("A face that weeps.",)}
    meaning = {"glares": COLOURS["red"], "weeps": COLOURS["blue"], "anger": COLOURS["red"], "": COLOURS["blue"]}
    told: list[str] = []
    read = Embedder.texts
    monkeypatch.setattr(Embedder, "texts", lambda self, texts, *more: told.extend(texts) or read(self, texts, *more))
    settings = EvaluationConfig(url=url, classes=whole, templates=("{}",), every_prompt_set=True)
    found = scores(evaluate(settings, ColourModel(meaning)))
    assert found["uar_of_set/exp_clip_five"] == 1
    assert "A face that glares." in told
    assert not [text for text in told if "A face that" in text and not text.startswith("A face that")]


def test_prompts_whose_vectors_are_not_finite_end_the_evaluation(tmp_path):
    url = packed(tmp_path, [("red", "red"), ("blue", "blue")])
    with pytest.raises(DataError, match="prompts of the class 'blue' have vectors that are not finite"):
        evaluate(EvaluationConfig(url=url), ColourModel({"red": (1, 0, 0), "blue": (np.inf, 0, 0)}))


def test_the_result_does_not_depend_on_the_batch(tmp_path):
    url = packed(tmp_path, [("red", "red"), ("blue", "green"), ("green", "green"), ("blue", "blue")])
    results = [classify(EvaluationConfig(url=url, batch=batch)).counts for batch in (1, 3, 100)]
    assert results[0] == results[1] == results[2]


def test_the_error_for_a_label_without_a_class_names_it(tmp_path):
    url = packed(tmp_path, [("red", "red"), ("blue", "blue")])
    with pytest.raises(
        ConfigError,
        match=r"^evaluation\.classes lacks blue, which samples of .*; the classes are red\.$",
    ):
        classify(EvaluationConfig(url=url, classes={"red": ("red",)}))


def test_a_dataset_without_the_label_is_refused(tmp_path):
    url = packed(tmp_path, [("red", "red")])
    with pytest.raises(ConfigError, match=r"^evaluation\.label=mood: no sample of .* has this label"):
        classify(EvaluationConfig(url=url, label="mood"))
