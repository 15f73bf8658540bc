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
from torch import Tensor

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.results import ConfusionMatrix

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

    def embed_images_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 8, 8)
        means = images.float().mean((2, 3))
        return torch.nn.functional.normalize(means, dim=-1), means

    def embed_texts(self, tokens: Any) -> Tensor:
        rows = [sum(np.array(value) for word, value in self.meaning.items() if word in text) for text in tokens.texts]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows)).float(), dim=-1)


def classify(settings: EvaluationConfig, model: Any = None, tokenizer: Any = None) -> ConfusionMatrix:
    embedder = Embedder(model or ColourModel(), tokenizer or FakeTokenizer())
    (result,) = tasks.evaluate(settings, embedder, RankGroup(Rank(), "cpu", None), url="faces")
    (matrix,) = result.confusion_matrices
    return matrix


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


def test_cosines_are_averaged_over_templates_and_not_embeddings(tmp_path):
    """Class x has the cosines 1 and 0, which are 0.5 on average. The cosine of its mean vector would be 0.7."""
    url = packed(tmp_path, [("red", "x"), ("red", "y")])
    meaning = {"x1": (1, 0, 0), "x2": (0, 1, 0), "y1": (0.6, 0.8, 0), "y2": (0.6, 0, 0.8)}
    settings = EvaluationConfig(url=url, classes={"x": ("x",), "y": ("y",)}, templates=("{}1", "{}2"))
    assert classify(settings, ColourModel(meaning)).counts == ((0, 1), (0, 1))


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
