"""Measures retrieval: how often the caption of a face, or a face of a caption, is among the k closest candidates.

Many faces may have the same caption. Each distinct caption is therefore one candidate, and every face that has the
caption is a right answer. If a right and a wrong candidate have equal cosines with the query, the wrong one comes
first, so that a model that maps everything to one vector has a recall of 0.

Each part of the captions is compared with the images separately. The texts of most parts are compared with the vectors
of whole images. The local sentences of a caption are compared with patches, but in a simpler way than in training. The
loss pools the patches of an image anew for each sentence (docs/method.md, section 2), which needs all patches of all
images, and these are too many to keep for a large dataset. So the task takes the case `sharpness = 0` of the same
formula, in which all patches have the same weight: the score of a sentence is the mean of its cosines with the patches,
and the score of a caption is the mean over its sentences. This score is the dot product of two vectors, the mean of the
patch vectors and the mean of the sentence vectors. If the model was not trained with local sentences, such as a model
of another library, the vector of the whole image takes the place of the mean of the patch vectors.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import PARTS, PROMPT_PART, WHOLE, Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features, PartFeatures
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import Candidate, FoundExample, RankOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult
from emocap_pretrain.run_folder.samples import answers_digest

NEAREST = (1, 5, 10)  # The k of the reported recalls. Their scores' names contain them, so they are a stored format.
ENTRIES = 1 << 20  # Number of cosines that are in memory at the same time, 8 MiB in float64.
# Two cosines that differ by less are equal. The sums of equal products may differ by their rounding in float64.
MARGIN = 1e-12
EXAMPLES, CANDIDATES, LONGEST_TEXT = 8, 5, 1000  # Queries that are shown, their candidates, characters of a text.

_COMPARED = (*PARTS, WHOLE)
_TITLES = {"image_to_text": "face to {}caption", "text_to_image": "{}caption to face"}


def _directions(part: Part) -> tuple[str, str]:
    """Returns the ends of the names of a part's scores, for the direction from image to text and for the other one.

    The ends begin with the name of the part, except for global captions: their scores got their names when captions had
    no other parts.
    """
    to_text, to_image = _TITLES
    return (to_text, to_image) if part is PROMPT_PART else (f"{part.name}_{to_text}", f"{part.name}_{to_image}")


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Implements the task `retrieval`. Its scores are the recall at 1, 5 and 10, and the median rank.

    The scored dataset needs captions and no labels. Its captions must not occur in the training data.

    For each part of the captions, and for the whole text of a caption, two directions are measured. From image to text,
    each face with a caption is a query, and the distinct captions are the candidates; if a face has several captions,
    each of them is a right answer. From text to image, each distinct caption is a query, and all faces are the
    candidates. Two captions count as one if their texts of the part are equal; the order of local sentences does not
    matter.

    A part that no caption has is left out. The whole text is left out if the captions have no part but the global one.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "retrieval"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = (
        *(
            tuple(f"recall_at_{count}_{direction}" for count in NEAREST)
            for part in _COMPARED
            for direction in _directions(part)
        ),
        *(tuple(f"median_rank_{_directions(part)[place]}" for part in _COMPARED) for place in (0, 1)),
    )
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("caption",)
    reads_texts: ClassVar[bool] = True
    parts: ClassVar[tuple[Part, ...]] = _COMPARED
    about: ClassVar[str] = "finds the caption of each face and a face of each caption, by part; recall at 1, 5, 10"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, sources: Mapping[SplitName, ExampleSource], *, seconds: float | None = None) -> Sequence[str]:  # noqa: ARG002 - it reads no sample
        if len(sources["test"]) < 2:
            raise ConfigError(
                f"evaluation.url={self.settings.url} has one sample, and retrieval needs others to choose from: "
                "give a larger dataset, or leave retrieval out of evaluation.tasks."
            )
        return ()

    def result(self, embedder: Embedder, features: Mapping[SplitName, Features]) -> TaskResult:  # noqa: ARG002 - the features hold all vectors
        test = features["test"]
        if PROMPT_PART.name not in test.parts:
            raise ConfigError(f"retrieval needs captions, and {self.settings.url} has none.")
        compared = [part for part in _COMPARED if part.name in test.parts]
        if compared == [PROMPT_PART, WHOLE]:
            compared = [PROMPT_PART]
        found = {part.name: _Places.of(part, test) for part in compared}
        shown = found[PROMPT_PART.name]
        return TaskResult(
            task=self.name,
            samples=len(shown.with_caption),
            scores=tuple(score for each in found.values() for score in each.scores()),
            outcomes=tuple(outcome for each in found.values() for outcome in each.outcomes(test.keys)),
            found=tuple(shown.examples(test.keys)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Captions:
    """Holds the distinct captions of a split. Only the texts of one caption part are considered.

    Attributes:
        texts: The text of each distinct caption, in the order in which they first occur. Several sentences are joined.
        vectors: The vector of each distinct caption.
        pairs: The faces with their captions: each row holds the row of a face and the index of one of its captions. A
            pair occurs once. The rows are sorted.
    """

    texts: tuple[str, ...]
    vectors: Float[Tensor, "captions embedding"]
    pairs: Int[Tensor, "pairs 2"]

    @classmethod
    def of(cls, part: PartFeatures) -> "Captions":
        """Finds the distinct captions among all captions that have texts of the part.

        Two captions are the same if their texts of the part are equal, in any order. The vector of a caption is the
        mean of the vectors of its texts. If a caption occurs several times, its vectors differ only by rounding, and
        the first one is taken.
        """
        caption, starts = torch.unique_consecutive(part.caption, return_counts=True)
        firsts = (starts.cumsum(0) - starts).tolist()
        numbers: dict[tuple[str, ...], int] = {}
        texts: list[str] = []
        first: list[int] = []  # The number among all captions of the first caption with these texts.
        of_caption: list[int] = []
        for number, (start, count) in enumerate(zip(firsts, starts.tolist(), strict=True)):
            key = tuple(sorted(part.texts[start : start + count]))
            if key not in numbers:
                first.append(number)
                texts.append(" ".join(part.texts[start : start + count]))
            of_caption.append(numbers.setdefault(key, len(numbers)))
        means = part.vectors.new_zeros(len(caption), part.vectors.shape[1]).index_add_(0, part.caption, part.vectors)
        owner = part.owner[firsts]
        pairs = torch.stack([owner, torch.tensor(of_caption)], dim=1).unique(dim=0)
        return cls(tuple(texts), (means / starts[:, None])[first], pairs)


def wrong_before(
    left: Float[Tensor, "left embedding"], right: Float[Tensor, "right embedding"], pairs: Int[Tensor, "pairs 2"]
) -> tuple[Int[Tensor, " left"], Int[Tensor, " right"]]:
    """Counts, for each query, the wrong candidates that are at least as similar to it as its best right candidate.

    First the vectors `left` are the queries and the vectors `right` the candidates, and then the other way round.
    Similarity is the dot product. If the candidates were sorted by it, with wrong ones first among equal ones, a right
    candidate would be among the first k exactly if the count is below k. So the counts give the recall at every k
    without sorting, and the rank of the best right candidate is the count plus 1. For a query without a right candidate
    the count is the number of candidates.

    The dot products are computed in float64, in square blocks of `ENTRIES` numbers, each of which serves both
    directions. So the memory beside the arguments is a few blocks, and a few numbers for each vector and pair.

    Args:
        left: Vectors.
        right: Vectors.
        pairs: The right answers: the row in `left` and the row in `right` of each pair that belongs together.

    Returns:
        The counts of the queries `left`, and the counts of the queries `right`.
    """
    pairs = pairs[pairs[:, 0].argsort(stable=True)].contiguous()
    best_of_left, best_of_right = _best(left, right, pairs)
    counts_of_left, counts_of_right = (torch.zeros(len(side), dtype=torch.int64) for side in (left, right))
    side = max(1, math.isqrt(ENTRIES))
    starts = pairs[:, 0].contiguous()
    for row in range(0, len(left), side):
        rows = slice(row, row + side)
        queries, first = left[rows].double(), int(torch.searchsorted(starts, row))
        own = pairs[first : int(torch.searchsorted(starts, row + side))]
        for column in range(0, len(right), side):
            columns = slice(column, column + side)
            products = queries @ right[columns].double().T
            inside = own[(own[:, 1] >= column) & (own[:, 1] < column + side)] - torch.tensor([row, column])
            counts_of_left[rows] += _before(products, best_of_left[rows, None], inside).sum(1)
            counts_of_right[columns] += _before(products, best_of_right[None, columns], inside).sum(0)
    return counts_of_left, counts_of_right


def _before(products: Tensor, best: Tensor, right: Tensor) -> Bool[Tensor, "rows columns"]:
    """Returns True for each wrong candidate that is not less similar to its query than the best right candidate.

    Args:
        products: The dot products of some queries with some candidates.
        best: The largest dot product of each query with a right candidate, which broadcasts with `products`.
        right: The row and the column in `products` of each right candidate.
    """
    # "Not less" rather than "greater or equal": a wrong candidate whose product is NaN counts as coming before. So a
    # model with broken weights has a recall of 0 and not of 1.
    is_before = ~(products < best - MARGIN)
    is_before[right[:, 0], right[:, 1]] = False
    return is_before


def _best(left: Tensor, right: Tensor, pairs: Tensor) -> tuple[Float[Tensor, " left"], Float[Tensor, " right"]]:
    """Returns the largest dot product of each vector of both sides with a right candidate of the other side.

    It is minus infinity for a vector without a right candidate.
    """
    step = max(1, ENTRIES // left.shape[1])
    found = [(left[each[:, 0]].double() * right[each[:, 1]].double()).sum(1) for each in pairs.split(step) if len(each)]
    products = torch.cat([torch.zeros(0, dtype=torch.float64), *found])
    of_left, of_right = (
        torch.full((len(side),), -math.inf, dtype=torch.float64).scatter_reduce(0, pairs[:, axis], products, "amax")
        for axis, side in enumerate((left, right))
    )
    return of_left, of_right


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Holds what was found for one caption part.

    Attributes:
        part: The part.
        images: The vectors with which the captions are compared, one for each face.
        captions: The distinct captions.
        with_caption: The rows of the faces that have a caption.
        of_faces: For each face, the number of wrong captions before its best right one (`wrong_before`).
        of_captions: For each caption, the number of wrong faces before its best right one.
    """

    part: Part
    images: Float[Tensor, "faces embedding"]
    captions: Captions
    with_caption: Int[Tensor, " faces_with_caption"]
    of_faces: Int[Tensor, " faces"]
    of_captions: Int[Tensor, " captions"]

    @classmethod
    def of(cls, part: Part, test: Features) -> "_Places":
        """Compares the captions of a part with the faces of a split.

        Faces are compared by their mean patch vectors if the part is compared with patches and there are such vectors,
        and otherwise by the vectors of whole images.
        """
        captions = Captions.of(test.parts[part.name])
        images = test.patches if part.aligned_with == "patches" and test.patches is not None else test.images
        counts = wrong_before(images, captions.vectors, captions.pairs)
        return cls(part, images, captions, captions.pairs[:, 0].unique(), *counts)

    def scores(self) -> Iterator[Score]:
        """Yields the scores of both directions, from face to caption first. Faces without a caption are no queries."""
        faces, captions = len(self.of_faces), len(self.of_captions)
        right_captions = torch.bincount(self.captions.pairs[:, 0], minlength=faces)[self.with_caption]
        right_faces = torch.bincount(self.captions.pairs[:, 1], minlength=captions)
        sides = ((self.of_faces[self.with_caption], right_captions, captions), (self.of_captions, right_faces, faces))
        words = "" if self.part is PROMPT_PART else f"{self.part.name} "
        for direction, title, side in zip(_directions(self.part), _TITLES.values(), sides, strict=True):
            yield from _scores(direction, title.format(words), *side)

    def outcomes(self, keys: Sequence[str]) -> tuple[RankOutcomes, RankOutcomes]:
        """Returns the rank of the best right candidate of each query, for both directions."""
        texts = tuple(map(_key, self.captions.texts))
        by_face: dict[str, list[str]] = {}
        by_text: dict[str, list[str]] = {}
        pairs: list[tuple[int, int]] = self.captions.pairs.tolist()
        for face, text in pairs:
            by_face.setdefault(keys[face], []).append(texts[text])
            by_text.setdefault(texts[text], []).append(keys[face])
        to_text, to_image = _directions(self.part)
        return (
            RankOutcomes(
                to_text,
                _ranks(self.of_faces[self.with_caption]),
                rows=tuple(self.with_caption.tolist()),
                candidates=len(texts),
                answers=answers_digest(by_face.items()),
            ),
            RankOutcomes(
                to_image,
                _ranks(self.of_captions),
                keys=texts,
                candidates=len(self.of_faces),
                answers=answers_digest(by_text.items()),
            ),
        )

    def examples(self, keys: Sequence[str]) -> Iterator[FoundExample]:
        """Yields some queries of both directions with their closest candidates. `keys` are the names of the faces."""
        texts, vectors, pairs = self.captions.texts, self.captions.vectors, self.captions.pairs
        yield from _examples(self.images, vectors, pairs, self.of_faces, (keys, texts), is_sample=True)
        yield from _examples(vectors, self.images, pairs.flip(1), self.of_captions, (texts, keys), is_sample=False)


def _ranks(before: Int[Tensor, " queries"]) -> tuple[int, ...]:
    return tuple((before + 1).tolist())


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _examples(
    queries: Float[Tensor, "queries embedding"],
    candidates: Float[Tensor, "candidates embedding"],
    right: Int[Tensor, "pairs 2"],
    before: Int[Tensor, " queries"],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    is_sample: bool,
) -> Iterator[FoundExample]:
    """Yields up to `EXAMPLES` queries that are spread evenly over all queries with a right answer.

    Each has its `CANDIDATES` closest candidates and the rank of its best right one.

    Args:
        queries: The vectors of the queries.
        candidates: The vectors of the candidates.
        right: The row of a query and the row of one of its right candidates, for each such pair.
        before: For each query, the number of wrong candidates before its best right one (`wrong_before`).
        names: The names of the queries, and the names of the candidates.
        is_sample: Whether the queries are samples and the candidates texts. Otherwise it is the other way round.
    """
    answered = right[:, 0].unique()
    chosen = answered[torch.linspace(0, len(answered) - 1, min(EXAMPLES, len(answered))).round().long()]
    for query in map(int, chosen):
        of_query = right[right[:, 0] == query, 1]
        cosines = candidates @ queries[query]
        closest = map(int, cosines.topk(min(CANDIDATES, len(candidates))).indices)
        is_right = set(of_query.tolist())
        found = tuple(Candidate(_cut(names[1][each]), each in is_right) for each in closest)
        yield FoundExample(_cut(names[0][query]), is_sample, found, int(before[query]) + 1)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _scores(
    direction: str,
    title: str,
    before: Int[Tensor, " queries"],
    right: Int[Tensor, " queries"],
    candidates: int,
) -> list[Score]:
    """Returns the recall at each k of `NEAREST`, and the median rank of the best right candidates.

    Each recall has its chance level as its baseline: the expected recall if the candidates were in random order.

    Args:
        direction: The end of the scores' names, such as "image_to_text" or "local_image_to_text".
        title: The beginning of the scores' titles, such as "face to caption".
        before: For each query, the number of wrong candidates before its best right one (`wrong_before`).
        right: Number of right candidates of each query.
        candidates: Number of candidates.
    """
    # Queries with equally many right candidates have the same chance, which is computed once for all of them.
    rights, queries = (found.tolist() for found in right.unique(return_counts=True))
    scores: list[Score] = []
    for k in NEAREST:
        chance = sum(chance_recall(k, each, candidates) * count for each, count in zip(rights, queries, strict=True))
        recall = int((before < k).sum()) / len(before)
        baseline = Baseline("chance", chance / len(before))
        scores.append(Score(f"recall_at_{k}_{direction}", f"{title}, recall at {k}", recall, baseline))
    rank = float(np.median(before.numpy())) + 1
    return [
        *scores,
        Score(f"median_rank_{direction}", f"{title}, median rank", rank, is_share=False, lower_is_better=True),
    ]


def chance_recall(k: int, right: int, candidates: int) -> float:
    """Returns the probability that `k` candidates that are drawn at random include at least one right candidate.

    `candidates` is the number of all candidates, and `right` is the number of right ones among them.

    >>> chance_recall(1, 2, 8), chance_recall(10, 1, 8)
    (0.25, 1.0)
    """
    wrong = candidates - right
    return 1 - math.comb(wrong, k) / math.comb(candidates, k) if k <= candidates else 1.0
