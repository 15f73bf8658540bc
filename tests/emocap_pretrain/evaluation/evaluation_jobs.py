# ruff: noqa: ARG002 - the methods have the form of the protocol
"""Defines the jobs of the ranks in the tests of evaluation. The processes of the ranks import this module."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pretrain_fakes import FakeRuntime

from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.evaluation.task import Share, run_task
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.results import Score, TaskResult
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
    return tasks.evaluate(config.evaluation, embedder_of(config), world.patient("evaluation"), url="faces")


def train(world: RankGroup, config: Config) -> None:
    """Trains as one of several ranks."""
    pretrain(config, FakeRuntime(rank_info=world.info))


@dataclass(frozen=True)
class Failing:
    """Is a task that raises an error on the rank and at the point that `evaluation.label` names."""

    settings: EvaluationConfig
    name: ClassVar[str] = "failing"
    about: ClassVar[str] = "fails"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, *, seconds: float | None = None) -> Sequence[str]:
        return ()

    def run(self, embedder: Embedder, share: Share) -> Iterator[int]:
        yield share.rank
        if self.settings.label == f"wrong on {share.rank}":
            raise ConfigError("the data do not fit")
        if self.settings.label == f"damaged on {share.rank}":
            raise DataError("a shard is damaged")

    def result(self, embedder: Embedder, parts: Sequence[int]) -> TaskResult:
        if self.settings.label == "no result":
            raise ZeroDivisionError
        return TaskResult(self.name, len(parts), (Score("sum", "sum", float(sum(parts)), is_share=False),))


def fail(world: RankGroup, label: str) -> tuple[str, str]:
    """Returns the class and message of the error that this rank raises, or its sum if it raises none."""
    no_model: Any = None
    try:
        found = run_task(Failing(EvaluationConfig(label=label)), no_model, world)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error).__name__, str(error)
    return "sum", str(found.metrics()["failing/sum"])


def parts_in_order(world: RankGroup, batches: int) -> list[int]:
    """Returns the batch of each part that arrives, where rank r makes the parts of batches r, r + world_size, ..."""

    @dataclass(frozen=True)
    class Numbers(Failing):
        def run(self, embedder: Embedder, share: Share) -> Iterator[int]:
            yield from range(share.rank, batches, share.world_size)

        def result(self, embedder: Embedder, parts: Sequence[int]) -> TaskResult:
            named = tuple(Score(f"part_{at}", "part", float(number)) for at, number in enumerate(parts))
            return TaskResult(self.name, len(parts), named)

    no_model: Any = None
    return [int(score.value) for score in run_task(Numbers(EvaluationConfig()), no_model, world).scores]
