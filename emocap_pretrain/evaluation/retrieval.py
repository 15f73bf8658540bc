"""Measures retrieval: how often the caption of a face, or a face of a caption, is among the k closest candidates.

Many faces may have the same caption. Each distinct caption is therefore one candidate, and every face that has the
caption is a right answer. If a right and a wrong candidate have equal cosines with the query, the wrong one comes
first, so that a model that maps everything to one vector scores 0.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emocap_pretrain.benchmarks.card import TargetKind
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.data.parts import PROMPT_PART, Part
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.examples import ExampleSource
from emocap_pretrain.evaluation.features import Features
from emocap_pretrain.evaluation.task import SplitName
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.run_folder.outcomes import Candidate, FoundExample, RankOutcomes
from emocap_pretrain.run_folder.results import Baseline, Score, TaskResult

NEAREST = (1, 5, 10)  # The k of the reported recalls. Their scores' names contain them, so they are a stored format.
ENTRIES = 1 << 25  # Number of cosines that are in memory at the same time, 256 MiB in float64.
EXAMPLES, CANDIDATES, LONGEST_TEXT = (
    8,
    5,
    1000,
)  # Of each direction: queries that are shown, their candidates, characters.


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Implements the retrieval task. Its dataset needs no labels; its captions must not occur in the training data.

    Only the global sentences of the captions are used. Two directions are measured. From image to text, each face is a
    query, and the distinct sentences are the candidates; if a face has several captions, the sentence of each is a
    right answer. From text to image, each distinct sentence is a query, and the faces are the candidates.
    """

    settings: EvaluationConfig
    name: ClassVar[str] = "retrieval"
    charts: ClassVar[tuple[tuple[str, ...], ...]] = tuple(
        tuple(f"recall_at_{count}_{direction}" for count in (1, 5, 10))
        for direction in ("image_to_text", "text_to_image")
    )
    splits: ClassVar[tuple[SplitName, ...]] = ("test",)
    targets: ClassVar[tuple[TargetKind, ...]] = ("caption",)
    parts: ClassVar[tuple[Part, ...]] = (PROMPT_PART,)
    about: ClassVar[str] = "finds the global caption of each face and a face of each caption; recall at 1, 5, 10"

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
        part = test.parts.get(PROMPT_PART.name)
        if part is None:
            raise ConfigError(f"retrieval needs captions, and {self.settings.url} has none.")
        # Number the distinct captions in the order in which they first occur.
        first: dict[str, int] = {}  # The first text of each caption.
        for number, caption in enumerate(part.texts):
            first.setdefault(caption, number)
        numbers = {caption: number for number, caption in enumerate(first)}
        # The pairs of a face and one of its captions, each once.
        caption_of = torch.tensor([numbers[caption] for caption in part.texts])
        pairs = torch.stack([part.owner, caption_of], dim=1).unique(dim=0)
        # Products in float64, so that the order of two candidates does not depend on rounding.
        with_caption = pairs[:, 0].unique()
        images = test.images.double()
        # A caption that occurs several times has about the same vector each time; that of its first text counts.
        texts = part.vectors.double()[list(first.values())]
        to_text = wrong_before(images, texts, pairs)[with_caption]
        to_image = wrong_before(texts, images, pairs.flip(1))
        right_texts = torch.bincount(pairs[:, 0], minlength=len(test))[with_caption]
        right_images = torch.bincount(pairs[:, 1], minlength=len(first))
        return TaskResult(
            task=self.name,
            samples=len(with_caption),
            scores=(
                *_scores("image_to_text", "face to caption", to_text, right_texts, len(first)),
                *_scores("text_to_image", "caption to face", to_image, right_images, len(test)),
            ),
            outcomes=(
                RankOutcomes("image_to_text", _ranks(to_text), rows=tuple(with_caption.tolist())),
                RankOutcomes("text_to_image", _ranks(to_image), keys=tuple(map(_key, first))),
            ),
            found=(
                *_examples(images, texts, pairs, test.keys, tuple(first), is_sample=True),
                *_examples(texts, images, pairs.flip(1), tuple(first), test.keys, is_sample=False),
            ),
        )


def wrong_before(
    queries: Float[Tensor, "queries embedding"],
    candidates: Float[Tensor, "candidates embedding"],
    right: Int[Tensor, "pairs 2"],
) -> Int[Tensor, " queries"]:
    """Counts, for each query, the wrong candidates that are at least as similar to it as its best right candidate.

    If the candidates were sorted by their cosine with the query, with wrong ones first where cosines are equal, a right
    one would be among the first k exactly if the count is below k. So the counts give the recall at every k without
    sorting, and one more than the count is the rank. For a query without a right candidate the count is the number of
    candidates.

    At most `ENTRIES` cosines are in memory at the same time, or those of one query.

    Args:
        queries: Unit vectors.
        candidates: Unit vectors.
        right: The pairs of a query and a right candidate, by their rows.
    """
    counts: list[Tensor] = []
    step = max(1, ENTRIES // len(candidates))
    right = right[right[:, 0].argsort(stable=True)]
    for start in range(0, len(queries), step):
        cosines = queries[start : start + step] @ candidates.T
        first, last = (int(torch.searchsorted(right[:, 0].contiguous(), at)) for at in (start, start + step))
        is_right = torch.zeros_like(cosines, dtype=torch.bool)
        is_right[right[first:last, 0] - start, right[first:last, 1]] = True
        best = cosines.masked_fill(~is_right, -math.inf).amax(1, keepdim=True)
        # "Not less" rather than "greater or equal": a wrong candidate whose cosine is NaN counts as coming before. So a
        # model with broken weights has a recall of 0 and not of 1.
        counts.append((~(cosines < best) & ~is_right).sum(1))
    return torch.cat(counts)


def _ranks(before: Int[Tensor, " queries"]) -> tuple[int, ...]:
    return tuple((before + 1).tolist())


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _examples(
    queries: Float[Tensor, "queries embedding"],
    candidates: Float[Tensor, "candidates embedding"],
    right: Int[Tensor, "pairs 2"],
    names: Sequence[str],
    answers: Sequence[str],
    *,
    is_sample: bool,
) -> Iterator[FoundExample]:
    """Yields queries that are spread evenly over all queries with an answer, and the candidates closest to them.

    Args:
        queries: Unit vectors.
        candidates: Unit vectors.
        right: The pairs of a query and a right candidate.
        names: The name of each query.
        answers: The name of each candidate.
        is_sample: Whether the queries are samples, and the candidates texts.
    """
    answered = right[:, 0].unique()
    chosen = answered[torch.linspace(0, len(answered) - 1, min(EXAMPLES, len(answered))).round().long()]
    for query in map(int, chosen):
        of_query = right[right[:, 0] == query, 1]
        cosines = candidates @ queries[query]
        closest = map(int, cosines.topk(min(CANDIDATES, len(candidates))).indices)
        pairs = torch.stack([torch.zeros_like(of_query), of_query], dim=1)
        rank = int(wrong_before(queries[query : query + 1], candidates, pairs)) + 1
        is_right = set(of_query.tolist())
        found = tuple(Candidate(_cut(answers[each]), each in is_right) for each in closest)
        yield FoundExample(_cut(names[query]), is_sample, found, rank)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


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
    rank = float(np.median(before.numpy())) + 1
    return [*scores, Score(f"median_rank_{name}", f"{title}, median rank", rank, is_share=False)]


def chance_recall(k: int, right: int, candidates: int) -> float:
    """Returns the probability that `k` candidates that are drawn at random include at least one right candidate.

    `candidates` is the number of all candidates, and `right` is the number of right ones among them.

    >>> chance_recall(1, 2, 8), chance_recall(10, 1, 8)
    (0.25, 1.0)
    """
    wrong = candidates - right
    return 1 - math.comb(wrong, k) / math.comb(candidates, k) if k <= candidates else 1.0
