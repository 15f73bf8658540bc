"""Makes results of imaginary models with random predictions, for tests that need results and no model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from emocap_pretrain.evaluation.classification import LabelledRows, scored
from emocap_pretrain.evaluation.result_file import EvaluatedModel, ResultFile, SavedFace, SavedMap
from emocap_pretrain.run_folder.outcomes import Candidate, FoundExample, RankOutcomes
from emocap_pretrain.run_folder.results import Score, Series, TaskResult
from emocap_pretrain.run_folder.samples import Samples

CLASSES = ("neutral", "happiness", "surprise", "sadness")


def samples(count: int, *, persons: int | None = None, prefix: str = "face") -> Samples:
    """Returns `count` samples with a gender and an age, which belong to `persons` persons in turn.

    Without `persons`, the persons are unknown.
    """
    numbers = range(count)
    groups = tuple(f"person {number % persons}" for number in numbers) if persons else ()
    gender = tuple("female" if number % 3 else "male" for number in numbers)
    labels = {"gender": gender, "age": tuple(float(18 + number % 37) for number in numbers)}
    return Samples(tuple(f"{prefix}/{number:05d}" for number in numbers), groups, labels=labels)


def classified(
    of: Samples, share: float, *, seed: int, task: str = "guess", benchmark: str = "", classes: Sequence[str] = CLASSES
) -> TaskResult:
    """Returns the result of a model that names the true class with probability `share`, and else a random class.

    The true classes depend only on the number of samples and of classes, so they are equal for all seeds.
    """
    truth = np.random.default_rng(len(of)).integers(len(classes), size=len(of))
    random = np.random.default_rng(seed)
    guesses = np.where(random.random(len(of)) < share, truth, random.integers(len(classes), size=len(of)))
    rows = LabelledRows(np.arange(len(of)), truth, tuple(classes), of.groups or (None,) * len(of))
    return replace(scored(task, "guessed", rows, guesses), url="faces", benchmark=benchmark, scored_samples=of)


def found_texts(of: Samples, *, seed: int) -> TaskResult:
    """Returns the result of a retrieval of texts by samples, with random ranks.

    The result has two examples of queries: the query of one is a sample, and that of the other is a text.
    """
    ranks = np.random.default_rng(seed).integers(1, 30, size=len(of))
    texts = (Candidate("a <b>happy</b> face", is_right=False), Candidate("a calm face", is_right=True))
    faces = (Candidate(of.keys[1], is_right=True), Candidate(of.keys[2], is_right=False))
    recall = float((ranks <= 5).mean())
    return TaskResult(
        "search",
        len(of),
        (Score("recall_at_5_to_text", "face to caption, recall at 5", recall),),
        url="faces",
        outcomes=(RankOutcomes("to_text", tuple(ranks.tolist()), rows=tuple(range(len(of)))),),
        scored_samples=of,
        found=(FoundExample(of.keys[0], True, texts, 2), FoundExample("a calm face", False, faces, 1)),
    )


def with_extras(result: TaskResult) -> TaskResult:
    """Returns the result with further scores, the lowest and the highest UAR of a template, and with a curve."""
    uar = result.scores[0].value
    spread = (
        Score("uar_lowest_template", "guessed UAR, worst prompt", max(0.0, uar - 0.1)),
        Score("uar_highest_template", "guessed UAR, best prompt", min(1.0, uar + 0.05)),
    )
    series = Series(
        "uar", "few examples, UAR", "examples of each class", (1, 2, 4), (0.3, 0.35, 0.5), (0.1, 0.05, 0.02), 0.25
    )
    return replace(result, scores=(*result.scores, *spread), series=(series,))


def mapped(key: str, sentence: str = "the eyes are closed") -> SavedFace:
    """Returns a face with one attention map of 2 x 3 patches, in which the last patch of the first row has weight 1."""
    return SavedFace(key, (SavedMap(sentence, ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0))),))


def file_of(
    name: str, *results: TaskResult, thumbnails: dict[str, str] | None = None, faces: Sequence[SavedFace] = ()
) -> ResultFile:
    """Returns the content of a file of results of the model `name`."""
    model = EvaluatedModel(name, f"/runs/{name}", 60, "raw", hashlib.sha256(name.encode()).hexdigest())
    return ResultFile.of(model, results, {"label": "emotion"}, thumbnails, faces)
