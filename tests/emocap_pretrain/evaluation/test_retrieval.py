"""Tests retrieval against an implementation that sorts all candidates of each query, in float64 without tensors."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.sample import Caption, Record
from emocap_shards.writer import write_shards
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.retrieval import NEAREST, Retrieval, RetrievalBatch, chance_recall, wrong_before
from emocap_pretrain.evaluation.task import Task
from emocap_pretrain.run_folder.results import TaskResult

TASK = Retrieval(EvaluationConfig(url="faces"))
NO_MODEL: Any = None  # The vectors are in the parts.


def naive(captions: Sequence[str], images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Returns the recall at k in both directions. `texts` holds the vector of each sample's caption."""
    first = {caption: captions.index(caption) for caption in captions}

    def found(query: np.ndarray, candidates: list[tuple[np.ndarray, bool]]) -> int:
        """Returns the place of the first right candidate. Wrong candidates with the same cosine come before it."""
        order = sorted((-float(query @ vector), is_right) for vector, is_right in candidates)
        return [is_right for _, is_right in order].index(True)

    to_text = [
        found(image, [(texts[row], other == caption) for other, row in first.items()])
        for image, caption in zip(images, captions, strict=True)
    ]
    to_image = [
        found(texts[row], [(image, other == caption) for image, other in zip(images, captions, strict=True)])
        for caption, row in first.items()
    ]
    places = {"image_to_text": to_text, "text_to_image": to_image}
    return {
        f"recall_at_{k}_{name}": float(np.mean(np.array(found) < k)) for name, found in places.items() for k in NEAREST
    }


def result_of(captions: Sequence[str], images: np.ndarray, texts: np.ndarray, batch: int) -> TaskResult:
    parts = [
        RetrievalBatch(
            tuple(captions[start : start + batch]),
            torch.from_numpy(images[start : start + batch]),
            torch.from_numpy(texts[start : start + batch]),
        )
        for start in range(0, len(captions), batch)
    ]
    return TASK.result(NO_MODEL, parts)


def scores(result: TaskResult) -> dict[str, float]:
    return {score.name: score.value for score in result.scores}


@given(st.integers(1, 25), st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**31))
def test_recall_is_that_of_sorting_all_candidates_in_float64(samples: int, different: int, batch: int, seed: int):
    random = np.random.default_rng(seed)
    captions = [f"caption {number}" for number in random.integers(0, different, samples)]
    # Few whole numbers as vectors, so that many cosines are equal.
    images, texts = (random.integers(-1, 2, (samples, 3)).astype(np.float32) for _ in range(2))
    wanted = naive(captions, images.astype(float), texts.astype(float))
    assert scores(result_of(captions, images, texts, batch)) == wanted


def test_vectors_of_a_tower_give_the_same_in_many_dimensions():
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(300, 64), dim=1).numpy() for _ in range(2))
    texts = normalize(torch.from_numpy(texts + images), dim=1).numpy()
    captions = [f"caption {number // 2}" for number in range(300)]
    found = result_of(captions, images, texts, 64)
    assert scores(found) == naive(captions, images.astype(float), texts.astype(float))
    recall = found.metrics()
    assert 0.1 < recall["retrieval/recall_at_1_image_to_text"] < recall["retrieval/recall_at_10_image_to_text"] <= 1
    assert found.samples == 300


def test_more_queries_than_are_held_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(40, 8), dim=1).numpy() for _ in range(2))
    captions = [f"caption {number}" for number in range(40)]
    whole = result_of(captions, images, texts, 40)
    monkeypatch.setattr("emocap_pretrain.evaluation.retrieval.ROWS", 7)
    assert result_of(captions, images, texts, 40) == whole


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_a_model_that_maps_everything_to_one_vector_finds_nothing(value: float):
    vectors = np.full((30, 4), value, dtype=np.float32)
    found = result_of([f"caption {number}" for number in range(30)], vectors, vectors, 8)
    assert set(scores(found).values()) == {0.0}


def test_a_caption_of_many_faces_counts_once_and_each_of_them_is_right():
    images = torch.eye(3)[[0, 0, 1, 2]]
    before = wrong_before(torch.eye(3), images, query=torch.arange(3), candidate=torch.tensor([0, 0, 1, 1]))
    assert before.tolist()[:2] == [0, 0]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 10), st.integers(0, 2**31))
def test_the_chance_of_a_draw_is_that_of_drawing(right: int, wrong: int, k: int, seed: int):
    candidates = right + wrong
    subsets = 0
    random = np.random.default_rng(seed)
    for _ in range(400):
        drawn = random.permutation(candidates)[:k]
        subsets += bool((drawn < right).any())
    # Five deviations of the mean of 400 draws, which are 0.125 where the chance is a half.
    assert chance_recall(k, right, candidates) == pytest.approx(subsets / 400, abs=0.13)


def test_one_right_answer_among_n_is_in_the_first_k_by_k_over_n():
    assert chance_recall(5, 1, 20) == pytest.approx(0.25)
    assert chance_recall(10, 1, 7) == 1.0


def test_each_score_has_the_recall_of_a_random_order():
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(20, 8), dim=1).numpy() for _ in range(2))
    captions = [f"caption {number // 4}" for number in range(20)]  # Five captions of four faces.
    chances = {
        score.name: score.baseline.value for score in result_of(captions, images, texts, 20).scores if score.baseline
    }
    assert chances["recall_at_1_image_to_text"] == pytest.approx(1 / 5)
    assert chances["recall_at_5_image_to_text"] == pytest.approx(1)
    assert chances["recall_at_1_text_to_image"] == pytest.approx(4 / 20)
    assert len(chances) == 6


def test_a_dataset_of_one_sample_is_refused_before_training(tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    write_shards([Record("k", file.getvalue(), "png", Caption("c", (), ""))], str(tmp_path))
    with pytest.raises(ConfigError, match=r"^evaluation\.url=.* has one sample, and retrieval needs others"):
        Retrieval(EvaluationConfig(url=str(tmp_path))).prepare()


def test_retrieval_needs_no_label_and_has_no_prompts():
    assert TASK.prompts() == ()
    assert isinstance(TASK, Task)
