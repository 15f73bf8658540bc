"""Scores the captions of unseen persons by a captioner, and compares them with three baselines (floors).

A floor is a way to get captions that uses less than the captioner does. The three floors of a test image are:

- `random_image`: the first caption of a random training image.
- `nearest_image`: the first caption of the training image whose pooled vector of the image tower has the largest cosine
  with that of the test image.
- `without_image`: the caption that the same language model writes without the image, with a projector of its own. In
  its training and in its scoring, the mean patch vectors of the training images replace the patch vectors of every
  image, so it writes the same caption for all test images.

The score of each floor is subtracted from the captioner's score. The 95 % interval of this difference is a paired
bootstrap over persons: a draw contains the same images for the captioner and for the floor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from emocap_pretrain.errors import DataError
from emocap_pretrain.evaluation.features import in_turn
from emocap_pretrain.evaluation.intervals import bootstrap
from emocap_pretrain.evaluation.outcome_scores import groups_of, metrics_of
from emocap_pretrain.evaluation.paired import Difference, differences
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.metrics import TITLES, measured, need_libraries
from emocap_pretrain.generation.patches import PatchFiles
from emocap_pretrain.ranks.group import ALONE, RankGroup
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes
from emocap_pretrain.run_folder.samples import Samples

BATCH = 128
FLOORS: Mapping[str, str] = {
    "random_image": "random image",
    "nearest_image": "nearest image",
    "without_image": "without image",
}
_BLOCK = 1024  # Test images whose cosines are in memory at the same time.


@dataclass(frozen=True, slots=True)
class Unseen:
    """Says which test images show a person who is not in the training data.

    Attributes:
        rows: The rows of these test images.
        known: Number of the other test images, whose person is in the training data.
    """

    rows: tuple[int, ...]
    known: int

    @classmethod
    def of(cls, train: PatchFiles, test: PatchFiles) -> "Unseen":
        """Finds the test images whose person has the name of no person in the training images.

        Raises:
            DataError: If fewer than two test images show a person who is not in the training data.
        """
        seen = {image.person for image in train.images}
        rows = tuple(row for row, image in enumerate(test.images) if image.person not in seen)
        if len(rows) < 2:
            raise DataError(
                f"{len(rows)} of {len(test):,} test images show a person who is not in the training data: give a test "
                "set of other persons."
            )
        return cls(rows, len(test) - len(rows))


@dataclass(frozen=True, slots=True)
class MetricResult:
    """Holds the scores of the captioner and of each floor by one metric, and the differences between them.

    Attributes:
        name: The name of the metric.
        title: The name of the metric in tables.
        value: The score of the captioner.
        interval: The 95 % bootstrap interval of this score over persons.
        floors: The score of each floor, by the name of the floor (`FLOORS`).
        differences: The captioner's score minus the score of each floor, by the name of the floor.
        intervals: The paired 95 % bootstrap interval of each difference over persons, by the name of the floor.
    """

    name: str
    title: str
    value: float
    interval: tuple[float, float]
    floors: Mapping[str, float]
    differences: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Holds the results of `score`.

    Attributes:
        images: Number of scored images: the test images of unseen persons.
        persons: Number of persons in the scored images.
        known: Number of test images that were left out because their person is in the training data.
        left_out: Number of test images that were left out because they have no vectors, by the reason.
        metrics: The result of each metric.
        captions: One mapping for each scored image: its `key`, its `references`, the caption of the `captioner`, and
            the caption of each floor by the name of the floor.
        outcomes: What each caption of the captioner adds to the scores, for a comparison with other captioners.
        samples: The scored images and their persons, to which the outcomes refer.
    """

    images: int
    persons: int
    known: int
    left_out: Mapping[str, int]
    metrics: tuple[MetricResult, ...]
    captions: tuple[Mapping[str, object], ...]
    outcomes: CaptionOutcomes
    samples: Samples


def score(
    captioner: Captioner,
    without_image: Captioner,
    train: PatchFiles,
    test: PatchFiles,
    *,
    world: RankGroup = ALONE,
    seed: int = 0,
    report: Callable[[int, int], object] | None = None,
) -> CaptionScores | None:
    """Writes captions for the test images of unseen persons, and scores these captions and those of the floors.

    This is a collective. Each rank writes the captions of every `world_size`-th batch, and rank 0 scores all captions.
    The images of a batch do not depend on the number of ranks, so any number of ranks writes the same captions.

    Args:
        captioner: The trained captioner.
        without_image: The captioner that was trained with the mean patch vectors in place of every image.
        train: The training images.
        test: The test images.
        world: All ranks, in a group from `RankGroup.patient`.
        seed: Determines which training images the floor `random_image` draws.
        report: Called after each batch of this rank with the number of captions that it has written, and the number of
            all captions of this rank.

    Returns:
        The scores on rank 0, and None on the other ranks.

    Raises:
        ConfigError: If a library of the metrics is missing.
        LostContact: If another rank has failed.
        DataError: If fewer than two images show an unseen person.
    """
    need_libraries()
    unseen = Unseen.of(train, test)
    images = [test.images[row] for row in unseen.rows]
    batches = [unseen.rows[start : start + BATCH] for start in range(0, len(unseen.rows), BATCH)]
    shares = world.collect_on_main(lambda: _captions(captioner, test, batches[world.rank :: world.world_size], report))
    if shares is None:
        return None
    written = {"captioner": [caption for batch in in_turn(shares) for caption in batch]}
    random = np.random.default_rng(seed).integers(len(train), size=len(images))
    nearest = nearest_images(test, train)[list(unseen.rows)]
    (constant,) = without_image.written(train.mean_patches()[None])
    written["random_image"] = [train.images[row].captions[0] for row in random]
    written["nearest_image"] = [train.images[row].captions[0] for row in nearest]
    written["without_image"] = [constant] * len(images)
    keys, references = [image.key for image in images], [image.captions for image in images]
    samples = Samples(tuple(keys), tuple(image.person for image in images))
    outcomes = {name: measured(texts, references, keys) for name, texts in written.items()}
    return CaptionScores(
        images=len(images),
        persons=len(set(samples.groups)),
        known=unseen.known,
        left_out=test.left_out,
        metrics=compared(outcomes, samples),
        captions=tuple(
            {"key": image.key, "references": image.captions, **{name: texts[row] for name, texts in written.items()}}
            for row, image in enumerate(images)
        ),
        outcomes=outcomes["captioner"],
        samples=samples,
    )


def _captions(
    captioner: Captioner,
    test: PatchFiles,
    batches: Sequence[Sequence[int]],
    report: Callable[[int, int], object] | None,
) -> list[list[str]]:
    """Returns the captions of each batch of rows of `test`."""
    found: list[list[str]] = []
    for batch in batches:
        found.append(captioner.written(test.patches(batch)))
        if report:
            report(sum(map(len, found)), sum(map(len, batches)))
    return found


def compared(written: Mapping[str, CaptionOutcomes], samples: Samples) -> tuple[MetricResult, ...]:
    """Returns the results of all metrics: the scores, and the captioner's differences from each floor.

    The differences are those of a comparison of two models (`evaluation/paired.py`).

    Args:
        written: What is measured of the captioner's captions by the name "captioner", and of the captions of each floor
            by the name of the floor.
        samples: The images with their persons.
    """
    whole, groups = np.ones((1, len(samples))), groups_of(written["captioner"], samples)
    metrics = {name: metrics_of(each) for name, each in written.items()}
    floors = [name for name in written if name != "captioner"]
    above = {name: differences((written[name], samples), (written["captioner"], samples)) for name in floors}

    def result(name: str, title: str) -> MetricResult:
        def found(floor: str) -> Difference:
            return above[floor][name]

        return MetricResult(
            name=name,
            title=title,
            value=float(metrics["captioner"][name](whole)[0]),
            interval=bootstrap(metrics["captioner"][name], groups),
            floors={floor: float(metrics[floor][name](whole)[0]) for floor in floors},
            differences={floor: found(floor).value for floor in floors},
            intervals={floor: found(floor).interval or (math.nan, math.nan) for floor in floors},
        )

    return tuple(result(name, title) for name, title in TITLES.items())


def nearest_images(images: PatchFiles, among: PatchFiles) -> Int64[np.ndarray, " images"]:
    """Returns for each image of `images` the row of the nearest image in `among`.

    The nearest image is the one whose pooled vector has the largest cosine with the pooled vector of the given image;
    of equal cosines, the first one counts. Both datasets are read in blocks, so neither has to fit into memory.
    """
    found: list[np.ndarray] = []
    for block in images.pooled_blocks():
        for start in range(0, len(block), _BLOCK):
            vectors = _units(block[start : start + _BLOCK])
            best, rows, first = np.full(len(vectors), -np.inf), np.zeros(len(vectors), dtype=np.int64), 0
            for others in among.pooled_blocks():
                cosines = vectors @ _units(others).T
                row = cosines.argmax(1)
                value = cosines[np.arange(len(vectors)), row]
                rows = np.where(value > best, first + row, rows)
                best, first = np.maximum(value, best), first + len(others)
            found.append(rows)
    return np.concatenate(found)


def _units(vectors: np.ndarray) -> Float[np.ndarray, "rows width"]:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
