"""Defines the jobs of the ranks in the tests of evaluation. The processes of the ranks import this module."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from emocap_shards.inspecting.label_values import LabelValues
from pretrain_fakes import FakeRuntime
from torch import Tensor

from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.data.transform import BICUBIC, Resize
from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation import on_benchmarks, run_tasks
from emocap_pretrain.evaluation.examples import Example, LeftOut
from emocap_pretrain.evaluation.features import Extraction
from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy
from emocap_pretrain.inference.embedder import Crop, Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import TaskResult
from emocap_pretrain.training.build import build_model
from emocap_pretrain.training.loop import pretrain

WORDS = ["a clearly happy face", "the brows are drawn together", "a neutral face", "anger, fear, joy"]


def embedder_of(config: Config) -> Embedder:
    """Returns a model with random weights, which are the same in every process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer.trained_on(WORDS, 320)
    return Embedder(build_model(config, tokenizer.vocabulary, weights=False).eval(), tokenizer)


def evaluate(world: RankGroup, config: Config) -> tuple[TaskResult, ...]:
    return run_tasks.evaluate(config.evaluation, embedder_of(config), world.patient("evaluation"), url="faces")


def evaluation_error(world: RankGroup, config: Config) -> str:
    """Returns the class and message of the error that this rank raises."""
    try:
        evaluate(world, config)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return f"{type(error).__name__}: {error}"
    return ""


def evaluate_copies(
    world: RankGroup, config: Config, copies: Sequence[Sequence[BenchmarkCopy]]
) -> tuple[list[str], list[str]]:
    """Evaluates the copies that this rank sees. Returns the benchmarks with results, and why others have none."""
    settings = EvaluationConfig(tasks=("zero_shot",), batch=4)
    try:
        found = on_benchmarks.evaluate(copies[world.rank], settings, embedder_of(config), world)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return [], [f"{type(error).__name__}: {error}"]
    return [each.benchmark for each in found.results], list(found.failures)


def train(world: RankGroup, config: Config) -> None:
    """Trains as one of several ranks."""
    pretrain(config, FakeRuntime(rank_info=world.info))


@dataclass(frozen=True)
class Numbered:
    """An `ExampleSource` whose examples are numbers. It raises `error` when the number `wrong` is read."""

    samples: int
    wrong: int | None = None
    error: type[Exception] = DataError
    address: str = "numbers"
    images_each: int = 1
    may_have_gaps: bool = False

    def __len__(self) -> int:
        return self.samples

    def examples(self, numbers: range) -> Sequence[Example | LeftOut]:
        if self.wrong in numbers:
            raise self.error("the data do not fit")
        return [Example(str(number), NumberContent(number)) for number in numbers]

    def label_values(self, name: str, *, seconds: float | None = None) -> LabelValues:
        raise NotImplementedError


@dataclass(frozen=True)
class NumberContent:
    """The content of an example: an image whose values are all equal to the number."""

    number: int

    def digest(self) -> bytes:
        return str(self.number).encode()

    def crops(self, pixels: int, crop: ImageCrop, resize: Resize = BICUBIC) -> Sequence[Crop]:  # noqa: ARG002
        return (np.full((pixels, pixels, 3), self.number, np.uint8),)


class NumberEmbedder:
    """An embedder without a model. The vector of an image is its number and 1."""

    model = SimpleNamespace(pixels=2)

    def crops_and_pooled(self, crops: Sequence[Crop]) -> tuple[Tensor, Tensor]:
        vectors = torch.tensor([[float(crop[0, 0, 0]), 1.0] for crop in crops])
        return vectors, vectors


def collect(world: RankGroup, source: Numbered) -> tuple[list[list[str]] | None, str]:
    """Returns the keys of each batch that arrives at this rank, or the class and message of the error it raises."""
    embedder: Any = NumberEmbedder()
    try:
        found = Extraction(embedder, batch=2).collect(source, world)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return None, f"{type(error).__name__}: {error}"
    return None if found is None else [list(each.keys) for each in found], ""
