"""Answers multiple-choice questions about images: the answer is chosen whose prompts are closest to the image.

The text of a question is not used, because a model of image and text vectors cannot read it together with the image. So
only questions whose answers describe the image, such as expressions, can be answered. The answers are shuffled before
they are compared. In some benchmarks the right answer always comes first, and with equal cosines the first answer wins.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.benchmarks.item import Question
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.intervals import bootstrap, shares
from emocap_pretrain.evaluation.prompt_set import expanded
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.classes import class_cosines, class_embeddings
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import AnswerOutcomes
from emocap_pretrain.run_folder.results import Baseline, Domain, Score, TaskResult
from emocap_pretrain.run_folder.samples import answers_digest

NO_QUESTIONS = "multiple_choice needs questions, which only benchmarks have: leave it out."


@dataclass(frozen=True, slots=True)
class Choice:
    """Implements the task `multiple_choice`. Its score is the share of questions whose right answer is chosen.

    Only benchmarks have questions; packed datasets have none.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "multiple_choice"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("accuracy",),)
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("question",)
    reads_texts: ClassVar[bool] = True
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "chooses the answer of a question by prompts; accuracy (only for benchmarks)"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:  # noqa: ARG002 - it reads no sample
        """Refuses every dataset: this method is called for packed datasets, and only benchmarks have questions.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(NO_QUESTIONS)

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test = features["test"]
        asked = [(row, question) for row, question in enumerate(test.questions) if question is not None]
        if not asked:
            raise ConfigError(NO_QUESTIONS)
        every = dict.fromkeys(answer for _, question in asked for answer in question.answers)
        templates, words = expanded(self.settings, {answer: (answer.rstrip(".").lower(),) for answer in every})
        columns = class_embeddings(embedder, templates, words)
        cosines = class_cosines(test.images, columns, self.settings.ensemble)
        place = {answer: number for number, answer in enumerate(every)}
        is_right = np.array(
            [chosen(cosines[row], question, place, test.keys[row]) == question.right for row, question in asked]
        )
        chance = float(np.mean([1 / len(question.answers) for _, question in asked]))
        accuracy = Score("accuracy", "questions, accuracy", float(is_right.mean()), Baseline("chance", chance))
        answers = answers_digest(
            (test.keys[row], [*map("answer: {}".format, each.answers), f"right: {each.answers[each.right]}"])
            for row, each in asked
        )
        groups = [test.groups[row] if test.groups else None for row, _ in asked]
        return TaskResult(
            self.name,
            len(asked),
            (accuracy.within(bootstrap(shares(is_right), groups)),),
            outcomes=(AnswerOutcomes(tuple(row for row, _ in asked), tuple(is_right.tolist()), answers),),
            domain=Domain(),
        )


def chosen(
    cosines: Float[Tensor, " answers"],
    question: Question,
    place: Mapping[str, int],
    key: str,
) -> int:
    """Returns the index in `question.answers` of the answer whose cosine with the image is largest.

    If several answers have the largest cosine, the first of them in a random order is chosen.

    Args:
        cosines: The cosine of the image with each answer that any question of the benchmark has.
        question: The question.
        place: The index of each answer in `cosines`.
        key: The name of the example, which is the seed of the random order.
    """
    seed = int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
    order = np.random.default_rng(seed).permutation(len(question.answers))
    shuffled = cosines[[place[question.answers[number]] for number in order]]
    return int(order[int(torch.argmax(shuffled))])
