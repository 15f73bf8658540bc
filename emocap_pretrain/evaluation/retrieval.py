"""Measures retrieval: how often the caption of a face, or a face of a caption, is among the k closest candidates.

Many faces may have the same caption. Each distinct caption is therefore one candidate, and every face that has the
caption is a right answer. If a right and a wrong candidate have equal cosines with the query, the wrong one comes
first, so that a model that maps everything to one vector scores 0.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from emocap_shards.manifest import read_manifest
from jaxtyping import Float, Int
from torch import Tensor

from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.task import Share
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

NEAREST = (1, 5, 10)  # The k of the reported recalls. Their scores' names contain them, so they are a stored format.
ROWS = 1024  # Number of queries whose cosines with all candidates are in memory at the same time.


@dataclass(frozen=True, slots=True)
class RetrievalBatch:
    """Holds the global captions of a batch's samples, and the vectors of their images and captions."""

    captions: tuple[str, ...]
    images: Float[Tensor, "samples embedding"]
    texts: Float[Tensor, "samples embedding"]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Implements the retrieval task. Its dataset needs no labels; its captions must not occur in the training data.

    Only the global caption of a sample is used. Two directions are measured. From image to text, each face is a query,
    and the distinct captions are the candidates. From text to image, each distinct caption is a query, and the faces
    are the candidates.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "retrieval"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = tuple(
        tuple(f"recall_at_{count}_{direction}" for count in (1, 5, 10))
        for direction in ("image_to_text", "text_to_image")
    )
    about: ClassVar[str] = "finds the global caption of each face and a face of each caption; recall at 1, 5, 10"

    def prompts(self) -> Sequence[str]:
        return ()

    def prepare(self, *, seconds: float | None = None) -> Sequence[str]:  # noqa: ARG002 - it reads the manifest alone
        if read_manifest(str(self.settings.url)).samples < 2:
            raise ConfigError(
                f"evaluation.url={self.settings.url} has one sample, and retrieval needs others to choose from: "
                "give a larger dataset, or leave retrieval out of evaluation.tasks."
            )
        return ()

    def run(self, embedder: Embedder, share: Share) -> Iterator[RetrievalBatch]:
        for samples in share.batches(str(self.settings.url), self.settings.batch, embedder.cropped):
            captions = tuple(sample.caption.global_ for sample in samples)
            yield RetrievalBatch(captions, embedder.images(samples), embedder.texts(captions))

    def result(self, embedder: Embedder, parts: Sequence[RetrievalBatch]) -> TaskResult:  # noqa: ARG002 - the parts hold all vectors
        # Number the distinct captions in the order in which they first occur.
        captions = [caption for part in parts for caption in part.captions]
        first: dict[str, int] = {}  # The first row of each caption.
        for row, caption in enumerate(captions):
            first.setdefault(caption, row)
        numbers = {caption: number for number, caption in enumerate(first)}
        caption_of = torch.tensor([numbers[caption] for caption in captions])
        # Products in float64, so that the order of two candidates does not depend on rounding.
        images = torch.cat([part.images for part in parts]).double()
        # A caption that occurs several times has about the same vector each time; that of its first row counts.
        texts = torch.cat([part.texts for part in parts]).double()[list(first.values())]
        each = torch.arange(len(first))
        to_text = wrong_before(images, texts, query=caption_of, candidate=each)
        to_image = wrong_before(texts, images, query=each, candidate=caption_of)
        faces = torch.bincount(caption_of)
        return TaskResult(
            task=self.name,
            samples=len(captions),
            scores=(
                *_scores("image_to_text", "face to caption", to_text, torch.ones_like(caption_of), len(first)),
                *_scores("text_to_image", "caption to face", to_image, faces, len(captions)),
            ),
        )


def wrong_before(
    queries: Float[Tensor, "queries embedding"],
    candidates: Float[Tensor, "candidates embedding"],
    *,
    query: Int[Tensor, " queries"],
    candidate: Int[Tensor, " candidates"],
) -> Int[Tensor, " queries"]:
    """Counts, for each query, the wrong candidates that are at least as similar to it as its best right candidate.

    If the candidates were sorted by their cosine with the query, with wrong ones first where cosines are equal, a right
    one would be among the first k exactly if the count is below k. So the counts give the recall at every k without
    sorting.

    Args:
        queries: Unit vectors.
        candidates: Unit vectors.
        query: An identifier for each query. The right candidates of a query are those with the same identifier in
            `candidate`. Each query must have at least one.
        candidate: An identifier for each candidate.
    """
    counts: list[Tensor] = []
    for rows, numbers in zip(queries.split(ROWS), query.split(ROWS), strict=True):
        cosines = rows @ candidates.T
        is_right = numbers[:, None] == candidate
        best = cosines.masked_fill(~is_right, -math.inf).amax(1, keepdim=True)
        # "Not less" rather than "greater or equal": a wrong candidate whose cosine is NaN counts as coming before. So a
        # model with broken weights has a recall of 0 and not of 1.
        counts.append((~(cosines < best) & ~is_right).sum(1))
    return torch.cat(counts)


def _scores(
    name: str, title: str, before: Int[Tensor, " queries"], right: Int[Tensor, " queries"], candidates: int
) -> list[Score]:
    """Returns the recall at each k of `NEAREST`, each with its chance level: the recall of candidates in random order.

    Args:
        name: Direction, as a part of the scores' names, such as "image_to_text".
        title: Direction, as a part of the scores' titles, such as "face to caption".
        before: Result of `wrong_before`.
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
        scores.append(Score(f"recall_at_{k}_{name}", f"{title}, recall at {k}", recall, baseline))
    return scores


def chance_recall(k: int, right: int, candidates: int) -> float:
    """Returns the probability that `k` candidates that are drawn at random include at least one right candidate.

    `candidates` is the number of all candidates, and `right` is the number of right ones among them.

    >>> chance_recall(1, 2, 8), chance_recall(10, 1, 8)
    (0.25, 1.0)
    """
    wrong = candidates - right
    return 1 - math.comb(wrong, k) / math.comb(candidates, k) if k <= candidates else 1.0
