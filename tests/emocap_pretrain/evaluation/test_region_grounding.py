"""Tests the scores of attention maps on maps whose weight lies in a known region, and against scikit-learn."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.writer import write_shards
from evaluation_jobs import embedder_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from emocap_pretrain.captions.regions import Missing, find, of_rendered
from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.regions import REGIONS_FILE, FaceRegions, write_regions
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation import look, run_tasks, tasks
from emocap_pretrain.evaluation.comparison import ModelResults, check
from emocap_pretrain.evaluation.examples import Example, PackedSource
from emocap_pretrain.evaluation.features import Extraction, SentenceMaps, joined
from emocap_pretrain.evaluation.outcome_scores import metrics_of, with_intervals
from emocap_pretrain.evaluation.region_grounding import RegionGrounding, measures, outcomes_of, scored
from emocap_pretrain.evaluation.result_file import EvaluatedModel
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.model import EmotionModel
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.run_folder.results import Score, TaskResult
from emocap_pretrain.run_folder.samples import Samples

ALONE = RankGroup(Rank(), "cpu", None)
LEFT, RIGHT = (0, 0, 500, 0, 500, 1000, 0, 1000), (500, 0, 1000, 0, 1000, 1000, 500, 1000)
FACE = FaceRegions({"eyes": (LEFT,), "mouth": (RIGHT,)}, ("eyes", "mouth", None))


def maps_of(*weights: Sequence[float], owner: Sequence[int], place: Sequence[int]) -> SentenceMaps:
    return SentenceMaps(("text",) * len(weights), torch.tensor(owner), torch.tensor(place), torch.tensor(weights))


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_the_measures_are_those_of_the_points_of_the_image(patches: int, seed: int):
    """The reference divides each patch into 20 points of equal weight, a random number of which lie in the region."""
    random = np.random.default_rng(seed)
    weights = random.integers(1, 5, patches) / 7.0
    weights /= weights.sum()
    inside = random.integers(0, 21, patches)
    inside[0] += inside[0] == 0
    is_inside = np.concatenate([np.arange(20) < number for number in inside])
    found = measures(weights, inside / 20)
    assert found[0] == pytest.approx((np.repeat(weights / 20, 20) * is_inside).sum())
    assert found[1] == pytest.approx(is_inside[np.repeat(weights == weights.max(), 20)].mean())
    assert found[2] == pytest.approx(average_precision_score(is_inside, np.repeat(weights, 20)))


def test_a_uniform_map_has_the_area_share_in_all_measures():
    covered = np.array([0.5, 0.25, 0.0, 0.05])
    assert measures(np.full(4, 0.25), covered) == pytest.approx([covered.mean()] * 3)


def test_own_maps_are_scored_beside_those_of_the_other_sentences_of_the_face():
    left, right = [0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]
    maps = maps_of(left, right, left, owner=[0, 0, 0], place=[0, 1, 2])
    found = scored(["a"], maps, {"a": FACE})
    assert found.names == ("eyes", "mouth")
    # The edge between the two regions is drawn with both of them.
    assert found.own == pytest.approx(np.ones((2, 3)), abs=0.01)
    assert found.shuffled[:, :2] == pytest.approx(np.zeros((2, 2)), abs=0.01)
    assert found.areas == pytest.approx([0.5, 0.5], abs=0.01)
    assert found.ceiling == pytest.approx([1, 1], abs=0.01)
    assert dict(found.left_out) == {"local sentences without a known region": 1}


def test_what_cannot_be_scored_is_counted():
    nothing = [0.0, 0.0, 0.0, 0.0]
    maps = maps_of([1.0, 0, 0, 0], [1.0, 0, 0, 0], nothing, [1.0, 0, 0, 0], owner=[0, 1, 1, 2], place=[0, 0, 1, 9])
    found = scored(["unknown", "a", "b"], maps, {"a": FACE, "b": FACE})
    assert dict(found.left_out) == {
        "faces without known regions": 1,
        "local sentences without a known region": 1,
        "local sentences whose map or region is empty": 1,
    }
    assert found.owner.tolist() == [1]
    assert np.isnan(found.shuffled).all()  # The only other map of the face is empty.


def test_the_mean_counts_each_region_equally_and_a_draw_holds_whole_images():
    left = [0.5, 0.0, 0.5, 0.0]
    maps = maps_of(left, left, left, left, owner=[0, 1, 2, 2], place=[0, 0, 0, 1])
    outcomes = outcomes_of(scored(["a", "b", "c"], maps, dict.fromkeys("abc", FACE)), 4)
    names = ("attention/eyes", "attention/mouth", "attention")
    found = {name: float(metrics_of(outcomes)[name](np.ones((1, 3)))[0]) for name in names}
    assert found == pytest.approx(dict(zip(names, (1, 0, 0.5), strict=True)), abs=0.01)
    scores = tuple(Score(name, name, value) for name, value in found.items())
    of = Samples(("a", "b", "c"), ("one", "one", None))
    result = with_intervals(TaskResult("maps", 3, scores, outcomes=(outcomes,), scored_samples=of))
    # Some draws hold only the first person, who has no sentence about the mouth.
    bounds = [score.interval for score in result.scores]
    assert bounds == [pytest.approx(each, abs=0.01) for each in ((1, 1), (0, 0), (0.5, 1))]
    # What is compared between models does not depend on the maps.
    others = scored(["a", "b", "c"], replace(maps, weights=maps.weights.roll(1, dims=1)), dict.fromkeys("abc", FACE))
    assert outcomes_of(others, 4).about == outcomes.about
    assert scored(["a", "b", "d"], maps, dict.fromkeys("abd", FACE)).about != outcomes.about


@pytest.fixture(scope="module")
def faces_with_regions(faces: str) -> str:
    write_regions(faces, find(faces, of_rendered, Missing()))
    return faces


def embedder_with_maps(config: Config) -> Embedder:
    return replace(embedder_of(config), local=LocalAlignment.of(config.objective, config.model.text.lengths.local))


def by_name(result: TaskResult) -> dict[str, Score]:
    return {score.name: score for score in result.scores}


def test_a_model_of_random_weights_is_evaluated_on_rendered_faces(
    tiny_config: Config, faces_with_regions: str, tmp_path: Any
):
    """The maps of the model are nearly uniform, so their scores are close to the share of the image in the regions.

    The results are equal with an empty cache, with a filled cache and without a cache.
    """
    settings = EvaluationConfig(
        url=faces_with_regions, tasks=(RegionGrounding.name,), batch=7, cache=str(tmp_path / "cache")
    )
    embedder = embedder_with_maps(tiny_config)
    (result,) = run_tasks.evaluate(settings, embedder, ALONE, url="faces")
    scores = by_name(result)
    assert result.samples == 24
    # The scores follow from what is kept for each face, to the digits that a comparison needs.
    check(ModelResults(EvaluatedModel("a"), (result,)))
    assert {"attention", "pointing_difference", "average_precision/mouth"} <= metrics_of(result.outcomes[0]).keys()
    for name in ("attention", "average_precision"):
        baseline = scores[name].baseline
        assert baseline is not None
        assert scores[name].value == pytest.approx(baseline.value, abs=0.08)
        assert scores[name].interval is not None
    assert scores["attention_difference"].value == pytest.approx(
        scores["attention"].value - scores["attention_shuffled"].value, abs=0.02
    )
    assert {"attention/eyes", "pointing/mouth", "average_precision/eyebrows"} <= scores.keys()
    covered = "sentences of faces with several regions"
    assert scores["attention_difference"].title == f"attention in the region, difference, {covered}"
    assert scores["attention_shuffled"].title == f"attention in the region, other sentence, {covered}"
    assert run_tasks.evaluate(settings, embedder, ALONE, url="faces") == (result,)
    assert run_tasks.evaluate(settings.model_copy(update={"cache": None}), embedder, ALONE, url="faces") == (result,)


def test_the_maps_are_those_of_the_python_interface(tiny_config: Config, faces: str):
    embedder, source = embedder_with_maps(tiny_config), PackedSource(faces)
    batches = Extraction(embedder, 5, with_maps=True).collect(source, ALONE)
    maps = joined(batches or [], faces).maps
    assert maps is not None
    model, example = EmotionModel(embedder), source.examples(range(6, 7))[0]
    assert isinstance(example, Example)
    rows = (maps.owner == 6).nonzero()[:, 0].tolist()
    assert [maps.texts[row] for row in rows] == list(example.captions[0].local)
    assert maps.place[rows].tolist() == list(range(len(rows)))
    (crop,) = example.content.crops(model.pixels, "center")
    for row in rows:
        found = model.attention_map(crop, maps.texts[row]).weights.ravel()
        assert maps.weights[row].numpy() == pytest.approx(found, abs=1e-6)


def test_a_model_without_local_sentences_and_a_dataset_without_regions_are_refused(
    tiny_config: Config, faces: str, tmp_path: Path
):
    settings = EvaluationConfig(url=faces, tasks=(RegionGrounding.name,))
    with pytest.raises(ConfigError, match=re.escape("needs a model that is trained with local sentences")):
        tasks.prepare(settings, has_local=False)
    with pytest.raises(ConfigError, match="needs a model that is trained with local sentences"):
        run_tasks.evaluate(settings, embedder_of(tiny_config), ALONE, url="faces")
    write_shards(records(4, pixels=32), str(tmp_path), samples_per_shard=4)
    with pytest.raises(ConfigError, match=f"has no {re.escape(REGIONS_FILE)}: write it with `emocap regions"):
        tasks.prepare(settings.model_copy(update={"url": str(tmp_path)}))
    no_local = ObjectiveConfig.model_validate({"local": 0})
    assert LocalAlignment.of(no_local, 16) is None


def test_maps_are_refused_for_the_whole_image_because_regions_lie_in_the_central_square(
    tiny_config: Config, faces_with_regions: str
) -> None:
    settings = EvaluationConfig(url=faces_with_regions, tasks=(RegionGrounding.name,))
    message = re.escape("region_grounding needs the central square of an image (evaluation.crop: center)")
    with pytest.raises(ConfigError, match=message):
        tasks.prepare(settings.model_copy(update={"crop": "whole"}))
    with pytest.raises(ConfigError, match=message):  # As SigLIP was published.
        tasks.prepare(settings, crop="whole")
    tasks.prepare(settings.model_copy(update={"crop": "center"}), crop="whole")
    whole = replace(embedder_with_maps(tiny_config), crop="whole")
    with pytest.raises(ConfigError, match=message):
        run_tasks.evaluate(settings, whole, ALONE, url="faces")


def test_a_model_that_was_not_trained_on_local_sentences_has_no_maps(
    tiny_config: Config, faces_with_regions: str
) -> None:
    embedder = embedder_with_maps(tiny_config)
    assert embedder.local is not None
    untrained = replace(embedder, local=replace(embedder.local, is_trained=False))
    assert look.of_run(embedder, faces_with_regions)
    assert look.of_run(untrained, faces_with_regions) == []
    settings = EvaluationConfig(url=faces_with_regions, tasks=(RegionGrounding.name,))
    with pytest.raises(ConfigError, match="needs a model that is trained with local sentences"):
        run_tasks.evaluate(settings, untrained, ALONE, url="faces")


def test_a_file_of_another_dataset_is_refused_before_anything_is_computed(faces: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_shards(records(3, pixels=16), str(other), samples_per_shard=3)
    (other / REGIONS_FILE).write_text(json.dumps({"regions": 1, "dataset": "another"}) + "\n")
    settings = EvaluationConfig(url=str(other), tasks=(RegionGrounding.name,))
    with pytest.raises(ConfigError, match="belongs to another dataset: write it again"):
        tasks.prepare(settings)
    write_regions(str(other), [("a", FACE)])
    assert tasks.prepare(settings) == []
