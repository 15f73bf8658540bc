from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_trees import build
from evaluation_jobs import embedder_of
from torch import Tensor

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.item import Question
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.evaluation.choice import Choice
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy, evaluate
from emocap_pretrain.evaluation.pairing import mismatches
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.samples import Samples

WORDS = ("anger", "fear", "joy", "sadness")
TASK = Choice(EvaluationConfig(url="faces"))


class Words:
    """Takes the place of a model. The vector of a prompt has a 1 for each word of `WORDS` that the prompt contains."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(word in text) for word in WORDS] for text in texts])


MODEL: Any = Words()


def asked(images: Tensor, questions: Sequence[Question | None]) -> dict[Any, Features]:
    keys = tuple(f"image {number}" for number in range(len(images)))
    return {"test": Features(keys, images, images, ({},) * len(images), questions=tuple(questions))}


def test_the_answer_closest_to_the_image_is_chosen_wherever_it_is() -> None:
    questions = [
        Question("Which?", ("Joy.", "Fear.", "Anger."), 2),
        Question("Which?", ("Fear.", "Joy."), 1),
        None,
        Question("Which?", ("Sadness", "Joy"), 1),
    ]
    images = torch.eye(4)[[0, 2, 1, 3]]
    result = TASK.result(MODEL, asked(images, questions))
    assert result.samples == 3
    (score,) = result.scores
    assert score.value == pytest.approx(2 / 3)
    assert score.baseline is not None
    assert score.baseline.value == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)


def test_a_model_that_cannot_tell_answers_apart_is_right_by_chance_if_the_first_is_always_right() -> None:
    questions = [Question("Which?", ("Joy", "Fear", "Anger", "Sadness"), 0)] * 400
    result = TASK.result(MODEL, asked(torch.zeros(400, 4), questions))
    # Four standard deviations of 400 draws.
    assert result.scores[0].value == pytest.approx(0.25, abs=0.09)


@pytest.mark.parametrize("name", ["face_human_bench", "facexbench"])
def test_a_model_is_scored_on_a_tiny_copy_of_a_benchmark_of_questions(
    name: str, tiny_config: Config, tmp_path: Path
) -> None:
    card = catalogue.card(name)
    expected = build(card, card.layouts[0], tmp_path)
    (result,) = evaluate(
        [BenchmarkCopy(card, tmp_path)], EvaluationConfig(), embedder_of(tiny_config), RankGroup(Rank(), "cpu", None)
    ).results
    assert (result.task, result.samples) == ("multiple_choice", expected[card.scored].total())


def test_a_dataset_without_questions_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs questions, which only benchmarks have"):
        TASK.result(MODEL, asked(torch.eye(4), [None] * 4))


def test_a_packed_dataset_is_refused_before_it_is_read(faces: str) -> None:
    with pytest.raises(ConfigError, match="needs questions, which only benchmarks have"):
        tasks.prepare(EvaluationConfig(url=faces, tasks=("multiple_choice",)))


def test_the_questions_of_two_models_are_compared_by_their_answers() -> None:
    questions = [Question("Which?", ("Joy", "Fear"), 0), Question("Which?", ("Joy", "Fear"), 1)]
    easier = [questions[0], Question("Which?", ("Joy", "Fear", "Anger"), 1)]
    one, same, other = (
        (TASK.result(MODEL, asked(torch.eye(4)[:2], each)).outcomes[0], Samples(("image 0", "image 1")))
        for each in (questions, questions, easier)
    )
    assert mismatches(one, same) == []
    assert mismatches(one, other) == ["the answers to choose from, or the right ones, differ"]
