"""One call of the global loss as a backend sees it, and the features that guide its mining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from emocap_kernels.distributed import ALONE, Ranks, Span
from emocap_kernels.mining import Guide, Mining, first_twins
from emocap_kernels.products import product

Side = Literal["image", "text"]
Objective = Literal["infonce", "mil_nce", "sigmoid", "soft"]
OBJECTIVES: tuple[Objective, ...] = ("infonce", "mil_nce", "sigmoid", "soft")
Products = tuple[tuple[Side, Side], ...]

# The guide table: (side of the anchor, side of the candidate) of each similarity; of two, the smaller decides.
IMAGE_ANCHORS: Mapping[Guide, Products] = {
    "counterpart": (("text", "text"),),
    "text": (("text", "text"),),
    "image": (("image", "image"),),
    "consensus": (("text", "text"), ("image", "image")),
    "joint": (("image", "text"),),
}
TEXT_ANCHORS: Mapping[Guide, Products] = {
    "counterpart": (("image", "image"),),
    "text": (("text", "text"),),
    "image": (("image", "image"),),
    "consensus": (("text", "text"), ("image", "image")),
    "joint": (("text", "image"),),
}


def flipped(products: Products) -> Products:
    """The same similarities with anchors as columns: cell (i, j) then belongs to anchor j and candidate i."""
    return tuple((candidate, anchor) for anchor, candidate in products)


def sides_needed(mining: Mining | None) -> set[Side]:
    """The sides of which every rank needs the features of the whole batch; without mining, a teacher's texts."""
    if mining is None:
        return {"text"}
    texts = TEXT_ANCHORS[mining.guide]
    by_text = flipped(texts) if mining.top_k is None else texts
    return {side for _, side in (*IMAGE_ANCHORS[mining.guide], *by_text)}


@dataclass(frozen=True, slots=True)
class Features:
    """Guide features of the anchors that this rank holds and of the whole batch, without gradient.

    Attributes:
        own: For each side [local, width of that side].
        every: For each needed side [total, width of that side].
        is_logit: The features are the embeddings themselves, so guide `joint` is the logit.
    """

    own: Mapping[Side, Tensor]
    every: Mapping[Side, Tensor]
    is_logit: bool

    def similarity(self, products: Products, rows: slice) -> Tensor:
        """Of the local anchors `rows` with all candidates, [rows, total]."""
        return _smallest([product(self.own[a][rows], self.every[c].T) for a, c in products])

    def teacher(self, rows: slice) -> Tensor:
        """Cosines of the local guide images `rows` with all guide texts, [rows, total]."""
        return self.similarity((("image", "text"),), rows)

    def twins(self, products: Products) -> list[Tensor | None]:
        return [first_twins(self.every[candidate]) for _, candidate in products]

    def similarity_of_twins(self, products: Products, rows: slice, twins: list[Tensor | None]) -> Tensor:
        """As `similarity`, equal for equal candidates to the bit (see `first_twins`)."""
        found: list[Tensor] = []
        for (anchor, candidate), twin in zip(products, twins, strict=True):
            similarity = product(self.own[anchor][rows], self.every[candidate].T)
            found.append(similarity if twin is None else similarity[:, twin])
        return _smallest(found)


def _smallest(similarities: list[Tensor]) -> Tensor:
    first, *others = similarities
    return first if not others else first.minimum(others[0])


@dataclass(frozen=True, slots=True)
class Problem:
    """The loss of the global batch, seen from a rank that holds some of its images and all of its texts.

    Attributes:
        image: [local, width].
        text: [total, width], of the dtype of `image`.
        scale: 0-dim, of the type of the scores: at least float32.
        objective: What is made of the scores.
        bias: 0-dim, added to the scores; of `sigmoid` only, else 0.
        guide_scale: 0-dim; of `soft` only: the teacher's scores are `guide_scale` times the cosines of `features`.
        ids: int64 [total], or None if only own pairs are known positives.
        mining: None if only known pairs are positives.
        features: Those that guide the mining, or the teacher's of `soft`; else None.
        span: Where the local rows lie in the batch.
        ranks: Who holds the others.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    objective: Objective
    bias: Tensor
    guide_scale: Tensor
    ids: Tensor | None
    mining: Mining | None
    features: Features | None
    span: Span
    ranks: Ranks

    def alone(self) -> Problem:
        """The same problem for one rank that holds all rows."""
        return replace(self, span=self.span.whole(), ranks=ALONE)
