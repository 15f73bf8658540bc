"""Measures whether the attention map of a local sentence lies in the region of the face that the sentence is about.

The file regions.jsonl of the dataset (`data/regions.py`) says where the regions of each face lie, and which region each
sentence is about. A map has a weight `w[p]` for each patch `p`, and the weights sum to 1. `c[p]` is the share of the
patch that the region covers, and the mean of `c` is the area share of the region. Three measures are computed for each
sentence:

- The pointing game asks whether the point with the largest weight lies in the region (Zhang et al. 2016, "Top-down
  Neural Attention by Excitation Backprop"). Here all points of the patch with the largest weight count equally, so the
  value is `c` of this patch. If several patches have the largest weight, the value is the mean of their `c`. Zhang et
  al. allow a distance of 15 pixels from the region. Here the distance must be 0: patches are larger than 15 pixels.
- The attention in the region is `sum(w * c)`, the share of the weights that lies in it. The weight of a patch counts as
  spread evenly over the patch. Wang et al. 2020 ("Score-CAM") call this the energy-based pointing game.
- The average precision is that of scikit-learn for the points of the image, each ranked by the weight of its patch,
  with the points of the region as the right ones.

Each measure has two baselines (floors). The first is a uniform map: in all three measures it has the area share of the
region. The second is the maps of the sentences about other regions of the same face: if maps show only where the face
is, the map of a sentence lies in its region no more than these maps do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from emocap_shards.inspecting.wording import counted
from jaxtyping import Bool, Float, Int

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import Part
from emocap_pretrain.data.patch_mask import patches_along_a_side
from emocap_pretrain.data.regions import FaceRegions, check_header, coverage, has_regions, read_regions
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features, SentenceMaps
from emocap_pretrain.evaluation.outcome_scores import metrics_of, with_intervals
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcome_sums import RegionOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult
from emocap_pretrain.run_folder.samples import Samples, answers_digest

MEASURES: Mapping[str, str] = {
    "attention": "attention in the region",
    "pointing": "pointing game",
    "average_precision": "average precision of maps",
}
"""The titles of the measures by their names, in the order of the columns of `measures`."""

Measures = Float[np.ndarray, "measures"]
COVERED = "sentences of faces with several regions"
"""The sentences that have the map of another sentence as a floor: the own map of the others has a score alone."""

MOST_NUMBERS = (
    5_000_000  # A result with more keeps no outcomes. Ten regions need 110 numbers for each face, about 1 kB.
)
DIGITS = 9  # Decimals of the sums in outcomes.

NO_FILE, NO_REGION = "faces without known regions", "local sentences without a known region"
NO_MAP = "local sentences whose map or region is empty"


def measures(weights: Float[np.ndarray, " patches"], covered: Float[np.ndarray, " patches"]) -> Measures:
    """Returns the attention in the region, the pointing game and the average precision of one map.

    Args:
        weights: The weights of the patches, which sum to 1.
        covered: The share of each patch that lies in the region. At least one is above 0.

    >>> measures(np.array([0.8, 0.2]), np.array([0.5, 0.0])).tolist()
    [0.4, 0.5, 0.5]
    """
    from sklearn.metrics import average_precision_score

    # Each patch has points inside and outside of the region, which all have its weight.
    inside = np.repeat([1, 0], len(weights))
    shares = np.concatenate([covered, 1 - covered])
    precision = average_precision_score(inside, np.tile(weights, 2), sample_weight=shares)
    return np.array([weights @ covered, covered[weights == weights.max()].mean(), precision])


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Holds the measures of the sentences of a dataset.

    Attributes:
        owner: The row in `Features` of the image of each sentence.
        region: The index in `names` of the region that each sentence is about.
        names: The names of the regions that sentences are about.
        own: The measures of the map of each sentence.
        shuffled: A control for each sentence: the maps of the same face's sentences about other regions, measured in
            the region of this sentence, and averaged. NaN if the face has no such sentence.
        areas: The area share of the region of each sentence.
        ceiling: The largest share of a patch that the region of each sentence covers. No map can have a larger value in
            the pointing game, or more of its weight in the region.
        left_out: Number of sentences, or of faces, that are left out, by the reason.
        about: A digest of the sentences about each face that are scored, with their regions.
    """

    owner: Int[np.ndarray, " sentences"]
    region: Int[np.ndarray, " sentences"]
    names: tuple[str, ...]
    own: Float[np.ndarray, "sentences measures"]
    shuffled: Float[np.ndarray, "sentences measures"]
    areas: Float[np.ndarray, " sentences"]
    ceiling: Float[np.ndarray, " sentences"]
    left_out: tuple[tuple[str, int], ...]
    about: str = ""


@dataclass(frozen=True, slots=True)
class RegionGrounding:
    """Implements the task `region_grounding`: it scores whether attention maps lie in the right regions of faces.

    The scored dataset needs local sentences and the file regions.jsonl.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "region_grounding"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (("attention", "attention_shuffled"), ("pointing",))
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ()
    reads_texts: ClassVar[bool] = True
    parts: ClassVar[tuple[Part, ...]] = ()
    about: ClassVar[str] = "whether the attention map of a sentence lies in its region of the face (emocap regions)"
    needs_maps: ClassVar[Literal[True]] = True

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:  # noqa: ARG002 - it reads no sample
        if not has_regions(self._url):
            where = sources["test"].address
            raise ConfigError(f"{where} has no regions.jsonl: write it with `emocap regions {where}`.")
        try:
            check_header(self._url)
        except DataError as error:
            raise ConfigError(str(error)) from error
        return ()

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:
        test = features["test"]
        if test.maps is None:
            raise ConfigError(f"{self.settings.url} has no local sentences, which the maps need.")
        patches_along_a_side(test.maps.weights.shape[1], embedder.model.pixels)
        found = scored(test.keys, test.maps, read_regions(self._url, set(test.keys)))
        if not found.names:
            raise ConfigError(f"{self.settings.url}: no local sentence has a known region.")
        outcomes = outcomes_of(found, test.maps.weights.shape[1])
        result = TaskResult(
            self.name,
            len(outcomes.rows),
            tuple(_scores(found, outcomes)),
            left_out=found.left_out,
            outcomes=(outcomes,),
            scored_samples=Samples(test.keys, test.groups),
        )
        # Persons or clips are drawn as wholes, like in the other tasks.
        result = with_intervals(result, most=None)
        return result if count_of(outcomes) <= MOST_NUMBERS else replace(result, outcomes=(), scored_samples=None)

    @property
    def _url(self) -> str:
        if self.settings.url is None:
            raise ConfigError("evaluation.url: the regions lie in a packed dataset; give one.")
        return self.settings.url


def scored(keys: Sequence[str], maps: SentenceMaps, regions: Mapping[str, FaceRegions]) -> Scored:
    """Computes the measures of the maps of all sentences whose region is known.

    A sentence is left out if its face has no known regions, if its own region is not known, if its map has no weight,
    or if its region lies outside of the central square of the image.

    Args:
        keys: The keys of the examples.
        maps: The attention maps of the examples' sentences. The patches of an image form a square grid.
        regions: The regions of each face, by the key of its example.
    """
    side = round(maps.weights.shape[1] ** 0.5)
    weights = maps.weights.double().numpy()
    of_face: dict[int, list[int]] = {}
    for number, row in enumerate(maps.owner.tolist()):
        of_face.setdefault(row, []).append(number)
    rows: list[tuple[int, str, Measures, Measures, float, float]] = []
    texts: dict[str, list[str]] = {}
    faces = unnamed = empty = 0
    for row, numbers in of_face.items():
        face = regions.get(keys[row])
        if face is None:
            faces += 1
            continue
        areas = {name: coverage(outlines, side) for name, outlines in face.areas.items()}
        about = {number: _named(face, int(maps.place[number])) for number in numbers}
        for number, name in about.items():
            if name is None:
                unnamed += 1
            elif not (covered := areas[name]).any() or not weights[number].any():
                empty += 1
            else:
                others = [other for other, its in about.items() if its not in {None, name} and weights[other].any()]
                shuffled = [measures(weights[other], covered) for other in others]
                mean = np.mean(shuffled, axis=0) if shuffled else np.full(len(MEASURES), np.nan)
                own = measures(weights[number], covered)
                rows.append((row, name, own, mean, float(covered.mean()), float(covered.max())))
                texts.setdefault(keys[row], []).append(f"{name}: {maps.texts[number]}")
    counts = ((NO_FILE, faces), (NO_REGION, unnamed), (NO_MAP, empty))
    names = tuple(sorted({name for _, name, *_ in rows}))
    owner, region, own, shuffled, areas, ceiling = zip(*rows, strict=True) if rows else [()] * 6
    return Scored(
        owner=np.array(owner, dtype=np.int64),
        region=np.array([names.index(name) for name in region], dtype=np.int64),
        names=names,
        own=np.array(own),
        shuffled=np.array(shuffled),
        areas=np.array(areas),
        ceiling=np.array(ceiling),
        left_out=tuple((reason, count) for reason, count in counts if count),
        about=answers_digest(texts.items()),
    )


def _named(face: FaceRegions, place: int) -> str | None:
    return face.local[place] if 0 <= place < len(face.local) else None


def outcomes_of(found: Scored, patches: int) -> RegionOutcomes:
    """Returns the sums of the measures over the sentences of each image about each region.

    Args:
        found: The measures.
        patches: The number of patches of a map.
    """
    rows, owner = np.unique(found.owner, return_inverse=True)
    shape = (len(found.names), len(rows))

    def sums(values: Float[np.ndarray, " sentences"]) -> tuple[tuple[float, ...], ...]:
        total = np.zeros(shape)
        np.add.at(total, (found.region, owner), values)
        return tuple(map(tuple, total.round(DIGITS).tolist()))

    def of_measures(values: Float[np.ndarray, "sentences measures"]) -> tuple[tuple[float, ...], ...]:
        return tuple(column for each in np.nan_to_num(values).T for column in sums(each))

    def counts(is_counted: Bool[np.ndarray, " sentences"]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(int, column)) for column in sums(is_counted.astype(float)))

    has_control = np.isfinite(found.shuffled[:, 0])
    return RegionOutcomes(
        tuple(rows.tolist()),
        found.names,
        tuple(MEASURES),
        patches,
        counts(np.ones(len(owner), dtype=bool)),
        counts(has_control),
        of_measures(found.own),
        of_measures(found.shuffled),
        of_measures(found.own - found.shuffled),
        found.about,
    )


def count_of(outcomes: RegionOutcomes) -> int:
    """Returns how many numbers outcomes hold."""
    return sum(len(column) for name in outcomes.TABLES for column in getattr(outcomes, name))


def _scores(found: Scored, outcomes: RegionOutcomes) -> list[Score]:
    """Returns the scores of each measure: its mean over the regions, and its mean in each single region.

    A mean over the regions counts each region equally, however many sentences are about it. The baseline of these
    scores is the floor of the uniform map. The mean over the regions is followed by the second floor, which is
    the same mean for the maps of other sentences, and by the mean difference between the two maps. These two scores are
    missing if no face has sentences about several regions.
    """
    whole = np.ones((1, len(outcomes.rows)))
    values = {name: float(metric(whole)[0]) for name, metric in metrics_of(outcomes).items()}
    regions = range(len(found.names))
    areas, ceilings = (
        [float(each[found.region == number].mean()) for number in regions] for each in (found.areas, found.ceiling)
    )

    def score(name: str, title: str, baseline: Baseline | None = None) -> Score:
        return Score(name, title, values[name], baseline, is_share=not name.endswith("_difference"))

    scores: list[Score] = []
    for name, title in MEASURES.items():
        note = "" if name == "average_precision" else f"at most {np.mean(ceilings):.1%}"
        scores.append(score(name, title, Baseline("uniform map", float(np.mean(areas)), note)))
        if f"{name}_shuffled" in values:
            scores.append(score(f"{name}_shuffled", f"{title}, other sentence, {COVERED}"))
            scores.append(score(f"{name}_difference", f"{title}, difference, {COVERED}"))
    for number, region in enumerate(found.names):
        note = counted(int((found.region == number).sum()), "sentence")
        for name, title in MEASURES.items():
            scores.append(score(f"{name}/{region}", f"{region}: {title}", Baseline("uniform map", areas[number], note)))
    return scores
