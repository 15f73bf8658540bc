"""Tests the scores of captions: the baselines (floors), the choice of unseen persons, and the paired intervals."""

from dataclasses import replace

import numpy as np
import pytest
from caption_jobs import Stored, scored
from gloo_ranks import on_gloo

from emocap_pretrain.errors import DataError
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.metrics import measured
from emocap_pretrain.generation.patches import PatchSettings, computed_patches
from emocap_pretrain.generation.projector import Projector
from emocap_pretrain.generation.scoring import FLOORS, Unseen, compared, nearest_images, score
from emocap_pretrain.run_folder.samples import Samples


def compared_texts(written, references, persons):
    keys = list(map(str, range(len(persons))))
    outcomes = {name: measured(texts, references, keys) for name, texts in written.items()}
    return compared(outcomes, Samples(tuple(keys), tuple(persons)))


PERSONS = [f"person {number // 2}" for number in range(24)]


@pytest.fixture(scope="module")
def test_faces(embedder, tmp_path_factory):
    from emocap_shards.writer import write_shards

    from emocap_pretrain.captions.rendered.dataset import records

    folder = tmp_path_factory.mktemp("unseen")
    write_shards(records(10, pixels=32, start=20), str(folder / "data"), samples_per_shard=10)
    return computed_patches(embedder, str(folder / "data"), PatchSettings(image_tokens=4), folder / "patches")


def test_the_scores_are_those_of_unseen_persons_beside_three_floors(language, patches, test_faces):
    captioner = Captioner(Projector(patches.shape[1], language.width), language, most_tokens=16)
    found = score(captioner, captioner, patches, test_faces, seed=1)
    # Faces 20 to 23 are in both datasets.
    assert (found.images, found.persons, found.known) == (6, 6, 4)
    written = captioner.written(test_faces.patches(range(4, 10)))
    assert [each["captioner"] for each in found.captions] == written
    (constant,) = captioner.written(patches.mean_patches()[None])
    assert {each["without_image"] for each in found.captions} == {constant}
    known = {image.captions[0] for image in patches.images}
    assert {each["random_image"] for each in found.captions} <= known
    nearest = nearest_images(test_faces, patches)[4:]
    assert [each["nearest_image"] for each in found.captions] == [patches.images[row].captions[0] for row in nearest]
    for result in found.metrics:
        assert result.floors.keys() == FLOORS.keys()
        assert result.differences["random_image"] == result.value - result.floors["random_image"]
        low, high = result.intervals["random_image"]
        assert low <= result.differences["random_image"] <= high


def test_any_number_of_ranks_computes_the_patches_and_writes_the_captions_of_one(
    run_url, llama, patches, tmp_path, tmp_path_factory
):
    """Ten faces are four parts of patches and, without those of known persons, three batches of captions."""
    from emocap_shards.writer import write_shards

    from emocap_pretrain.captions.rendered.dataset import records

    write_shards(records(10, pixels=32, start=20), str(tmp_path / "data"), samples_per_shard=10)

    def run(ranks):
        job = (run_url, llama, str(tmp_path / "data"), Stored.of(patches), tmp_path_factory.mktemp("patches"))
        return on_gloo(ranks, scored, *job)

    ((images, pooled, scores),) = run(1)
    assert (len(pooled), scores.images) == (4, 6)
    for ranks in (2, 3):
        found = run(ranks)
        assert [each[0] for each in found] == [images] * ranks
        assert all(np.array_equal(a, b) for each in found for a, b in zip(each[1], pooled, strict=True))
        assert [each[2] for each in found] == [scores, *[None] * (ranks - 1)]


def test_the_nearest_image_of_a_training_image_is_itself(patches):
    assert nearest_images(patches, patches).tolist() == list(range(24))


def test_a_floor_of_equal_captions_has_no_difference_and_better_captions_are_above_it(patches):
    truth = [image.captions for image in patches.images]
    perfect = [captions[0] for captions in truth]
    wrong = perfect[1:] + perfect[:1]
    for result in compared_texts({"captioner": perfect, "same": perfect, "wrong": wrong}, truth, PERSONS):
        assert result.differences["same"] == 0
        assert result.intervals["same"] == (0, 0)
        assert result.intervals["wrong"][0] > 0


def test_intervals_are_over_persons(patches):
    """If each image occurs twice, with the same person, the interval over persons stays as wide.

    It becomes narrower if the copies count as images of other persons.
    """
    truth = [image.captions for image in patches.images]
    wrong = [captions[0] for captions in truth[1:] + truth[:1]]
    half = [truth[row][0] if row % 2 else wrong[row] for row in range(24)]
    once = compared_texts({"captioner": half, "floor": wrong}, truth, [str(row) for row in range(24)])
    twice = compared_texts({"captioner": half * 2, "floor": wrong * 2}, truth * 2, [str(row) for row in range(24)] * 2)
    alone = compared_texts({"captioner": half * 2, "floor": wrong * 2}, truth * 2, [str(row) for row in range(48)])
    for each, same, narrow in zip(once, twice, alone, strict=True):
        width, widened, narrower = (np.ptp(result.intervals["floor"]) for result in (each, same, narrow))
        assert widened == pytest.approx(width, rel=0.3)
        assert narrower < 0.85 * widened


def test_a_test_set_of_known_persons_is_refused(patches):
    with pytest.raises(DataError, match="0 of 24 test images show a person who is not in the training data"):
        Unseen.of(patches, patches)
    others = replace(patches, images=tuple(replace(image, person="new") for image in patches.images))
    assert Unseen.of(patches, others).rows == tuple(range(24))
