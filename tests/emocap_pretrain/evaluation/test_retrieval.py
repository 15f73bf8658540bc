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
from torch.utils._python_dispatch import TorchDispatchMode

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import PackedSource
from emocap_pretrain.evaluation.features import Features, PartFeatures
from emocap_pretrain.evaluation.retrieval import NEAREST, Retrieval, chance_recall, wrong_before
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


def result_of(captions: Sequence[str | Sequence[str]], images: np.ndarray, texts: np.ndarray) -> TaskResult:
    """Returns the result of the task `retrieval`.

    `captions` has one or several captions for each image. `images` and `texts` are the vectors of images and captions.
    """
    each = [(caption,) if isinstance(caption, str) else tuple(caption) for caption in captions]
    flat = tuple(caption for some in each for caption in some)
    owner = torch.tensor([row for row, some in enumerate(each) for _ in some])
    features = Features(
        keys=tuple(map(str, range(len(each)))),
        images=torch.from_numpy(images),
        pooled=torch.from_numpy(images),
        labels=({},) * len(each),
        parts={"global": PartFeatures(flat, torch.from_numpy(texts), owner, torch.arange(len(flat)))},
    )
    return TASK.result(NO_MODEL, {"test": features})


def scores(result: TaskResult) -> dict[str, float]:
    return {score.name: score.value for score in result.scores if score.name.startswith("recall")}


@given(st.integers(1, 25), st.integers(1, 8), st.integers(0, 2**31))
def test_recall_is_that_of_sorting_all_candidates_in_float64(samples: int, different: int, seed: int):
    random = np.random.default_rng(seed)
    captions = [f"caption {number}" for number in random.integers(0, different, samples)]
    # Few whole numbers as vectors, so that many cosines are equal.
    images, texts = (random.integers(-1, 2, (samples, 3)).astype(np.float32) for _ in range(2))
    wanted = naive(captions, images.astype(float), texts.astype(float))
    assert scores(result_of(captions, images, texts)) == wanted


def test_vectors_of_a_tower_give_the_same_in_many_dimensions():
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(300, 64), dim=1).numpy() for _ in range(2))
    texts = normalize(torch.from_numpy(texts + images), dim=1).numpy()
    captions = [f"caption {number // 2}" for number in range(300)]
    found = result_of(captions, images, texts)
    assert scores(found) == naive(captions, images.astype(float), texts.astype(float))
    recall = found.metrics()
    assert 0.1 < recall["retrieval/recall_at_1_image_to_text"] < recall["retrieval/recall_at_10_image_to_text"] <= 1
    assert found.samples == 300


def test_more_queries_than_are_held_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(40, 8), dim=1).numpy() for _ in range(2))
    captions = [f"caption {number}" for number in range(40)]
    whole = result_of(captions, images, texts)
    monkeypatch.setattr("emocap_pretrain.evaluation.retrieval.ENTRIES", 7 * 40)
    assert result_of(captions, images, texts) == whole


class _Largest(TorchDispatchMode):
    """Notes the largest number of elements of any tensor that is made while the mode is active."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in (made if isinstance(made, tuple | list) else [made]) if torch.is_tensor(each)]
        self.elements = max(self.elements, *sizes, 0)
        return made


@pytest.mark.parametrize("entries", [1024, 4096])
def test_no_tensor_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch, entries: int):
    """The cosines of all 500 faces with all 450 captions would be 225,000 numbers.

    The vectors of the faces are 1,000 numbers, and those of the captions 900.
    """
    monkeypatch.setattr("emocap_pretrain.evaluation.retrieval.ENTRIES", entries)
    torch.manual_seed(0)
    images, texts = torch.randn(500, 2), torch.randn(450, 2)
    pairs = torch.stack([torch.arange(500), torch.arange(500) % 450], dim=1)
    with _Largest() as largest:
        found = wrong_before(images, texts, pairs)
    assert entries / 2 < largest.elements <= max(entries, pairs.numel())
    cosines = images.double() @ texts.double().T
    own = cosines[pairs[:, 0], pairs[:, 1]]
    assert torch.equal(found[0], (cosines > own[:, None]).sum(1))


@pytest.mark.parametrize("with_patches", [False, True])
def test_each_part_is_compared_with_what_the_model_compares_it_with(with_patches: bool):
    """The local score of a caption is the mean over its sentences.

    Captions with the same sentences in another order count as equal.
    """
    torch.manual_seed(1)
    faces, width = 12, 6
    images, patches = torch.randn(faces, width), torch.randn(faces, width)
    # Face 0 has two captions, and faces 1 and 2 have the same one in another order; face 3 has no local sentences.
    sentences = [
        ["a", "b"],
        ["c"],
        ["d", "e", "f"],
        ["f", "d", "e"],
        *([f"g{face}", f"h{face}"] for face in range(4, 12)),
    ]
    owners = [0, 0, 1, 2, *range(4, 12)]
    vectors = {text: torch.randn(width) for some in sentences for text in some}
    local = PartFeatures(
        tuple(text for some in sentences for text in some),
        torch.stack([vectors[text] for some in sentences for text in some]),
        torch.tensor([owner for owner, some in zip(owners, sentences, strict=True) for _ in some]),
        torch.tensor([number for number, some in enumerate(sentences) for _ in some]),
    )
    own = torch.arange(faces)
    texts = tuple(f"caption {face}" for face in range(faces))
    parts = {name: PartFeatures(texts, torch.randn(faces, width), own, own) for name in ("global", "whole")}
    features = Features(
        keys=texts,
        images=images,
        pooled=images,
        labels=({},) * faces,
        parts={**parts, "local": local},
        patches=patches if with_patches else None,
    )
    found = {score.name: score.value for score in TASK.result(NO_MODEL, {"test": features}).scores}
    for name, part in parts.items():
        words = "" if name == "global" else f"{name}_"
        for score, value in naive(texts, images.double().numpy(), part.vectors.double().numpy()).items():
            k, direction = score.removeprefix("recall_at_").split("_", 1)
            assert found[f"recall_at_{k}_{words}{direction}"] == value
    # The candidates are the distinct captions: that of face 2 is that of face 1.
    candidates = [some for number, some in enumerate(sentences) if number != 3]
    means = torch.stack([torch.stack([vectors[text] for text in some]).double().mean(0) for some in candidates])
    scores = (patches if with_patches else images).double() @ means.T
    right = torch.zeros(faces, len(candidates), dtype=torch.bool)
    right[[0, 0, 1, 2, *range(4, 12)], [0, 1, 2, 2, *range(3, 11)]] = True
    for direction, matrix, is_right in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
        best = torch.where(is_right, matrix, -torch.inf).amax(1, keepdim=True)
        ranks = 1 + ((matrix >= best) & ~is_right).sum(1)[is_right.any(1)]
        for k in NEAREST:
            assert found[f"recall_at_{k}_local_{direction}"] == pytest.approx(float((ranks <= k).double().mean()))
        assert found[f"median_rank_local_{direction}"] == float(np.median(ranks))


def test_the_whole_text_is_left_out_if_there_is_only_a_global_sentence():
    vectors = torch.eye(3)
    own = torch.arange(3)
    part = PartFeatures(("a", "b", "c"), vectors, own, own)
    features = Features(("1", "2", "3"), vectors, vectors, ({},) * 3, parts={"global": part, "whole": part})
    assert len(TASK.result(NO_MODEL, {"test": features}).scores) == 8


def test_every_score_is_in_a_chart():
    names = [name for chart in Retrieval.charts for name in chart]
    assert len(names) == len(set(names)) == 4 * 2 * (len(NEAREST) + 1)
    assert {"recall_at_1_image_to_text", "recall_at_10_whole_text_to_image"} <= set(names)
    assert {"median_rank_image_to_text", "median_rank_summary_text_to_image"} <= set(names)


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_a_model_that_maps_everything_to_one_vector_finds_nothing(value: float):
    vectors = np.full((30, 4), value, dtype=np.float32)
    found = result_of([f"caption {number}" for number in range(30)], vectors, vectors)
    assert set(scores(found).values()) == {0.0}


def test_a_caption_of_many_faces_counts_once_and_each_of_them_is_right():
    images = torch.eye(3)[[0, 0, 1, 2]]
    right = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]])
    of_captions, of_faces = wrong_before(torch.eye(3), images, right)
    assert of_captions.tolist() == [0, 0, 4]
    assert of_faces.tolist() == [0, 0, 0, 2]


def test_each_caption_of_a_face_is_a_right_answer():
    """The second caption of the first face is closest to it, and its first caption is farthest from it."""
    images = np.eye(3, dtype=np.float32)[:2]
    texts = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    found = result_of([("a smile", "joy"), "anger"], images, texts)
    values = {score.name: score.value for score in found.scores}
    assert values["recall_at_1_image_to_text"] == 1
    assert values["recall_at_1_text_to_image"] == pytest.approx(2 / 3)
    assert values["median_rank_image_to_text"] == 1
    # "a smile" is as far from both faces; the wrong one counts as first.
    assert values["median_rank_text_to_image"] == 1


def test_the_median_rank_is_that_of_the_best_right_answers():
    images = np.eye(4, dtype=np.float32)
    texts = np.eye(4, dtype=np.float32)[[1, 0, 2, 3]]  # The first two captions are exchanged.
    found = {score.name: score.value for score in result_of(["a", "b", "c", "d"], images, texts).scores}
    assert found["median_rank_image_to_text"] == found["median_rank_text_to_image"] == 2.5


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
        score.name: score.baseline.value for score in result_of(captions, images, texts).scores if score.baseline
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
        Retrieval(EvaluationConfig(url=str(tmp_path))).prepare({"test": PackedSource(str(tmp_path))})


def test_retrieval_needs_no_label_and_has_no_prompts():
    assert TASK.prompts() == ()
    assert isinstance(TASK, Task)
