"""One call of the global loss as a backend sees it, and the features that guide its mining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from emocap_kernels.distributed.columns import Block as Arrived
from emocap_kernels.distributed.columns import Columns, Sums
from emocap_kernels.distributed.ranks import Ranks, Span
from emocap_kernels.mining import Guide, Mining, first_twins
from emocap_kernels.products import product

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")
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
    """Guide features of the rows that this rank holds, without gradient.

    Attributes:
        own: For each side [local, width of that side].
        is_logit: The features are the embeddings themselves, so guide `joint` is the logit.
    """

    own: Mapping[Side, Tensor]
    is_logit: bool

    def similarity(self, products: Products, rows: slice, every: Mapping[Side, Tensor]) -> Tensor:
        """Of the local anchors `rows` with the candidates `every`, [rows, candidates]."""
        return _smallest([product(self.own[a][rows], every[c].T) for a, c in products])

    def similarity_of_twins(
        self, products: Products, rows: slice, every: Mapping[Side, Tensor], twins: list[Tensor | None]
    ) -> Tensor:
        """As `similarity`, equal for equal candidates to the bit (see `first_twins`)."""
        found: list[Tensor] = []
        for (anchor, candidate), twin in zip(products, twins, strict=True):
            similarity = product(self.own[anchor][rows], every[candidate].T)
            found.append(similarity if twin is None else similarity[:, twin])
        return _smallest(found)


def twins_of(products: Products, every: Mapping[Side, Tensor]) -> list[Tensor | None]:
    return [first_twins(every[candidate]) for _, candidate in products]


def _smallest(similarities: list[Tensor]) -> Tensor:
    first, *others = similarities
    return first if not others else first.minimum(others[0])


@dataclass(frozen=True, slots=True)
class Block:
    """Some texts of the batch, and what guides read of the same samples.

    Attributes:
        columns: Their global indices.
        text: [texts, width], of the type of the images.
        every: For each side that a guide needs, [texts, width of that side].
    """

    columns: slice
    text: Tensor
    every: Mapping[Side, Tensor]


@dataclass(frozen=True, slots=True)
class Problem:
    """The loss of the global batch, seen from a rank that holds some of its rows and is brought the others.

    Attributes:
        image: [local, width].
        text: [local, width], in the type that travels; of the reference, in that of `image`.
        columns: What travels: the texts, then the features of `sides`.
        sides: Those of which features travel beside the texts.
        scale: 0-dim, of the type of the scores: at least float32.
        objective: What is made of the scores.
        bias: 0-dim, added to the scores; of `sigmoid` only, else 0.
        guide_scale: 0-dim; of `soft` only: the teacher's scores are `guide_scale` times the cosines of `features`.
        ids: int64 [total], or None if only own pairs are known positives.
        mining: None if only known pairs are positives.
        features: Those that guide the mining, or the teacher's of `soft`; else None.
        feature_dtype: Of features in products.
        span: Where the local rows lie in the batch.
        ranks: Who holds the others.
    """

    image: Tensor
    text: Tensor
    columns: Columns
    sides: tuple[Side, ...]
    scale: Tensor
    objective: Objective
    bias: Tensor
    guide_scale: Tensor
    ids: Tensor | None
    mining: Mining | None
    features: Features | None
    feature_dtype: torch.dtype
    span: Span
    ranks: Ranks

    def blocks(self, sums: Sums | None = None) -> Iterator[Block]:
        """All texts of the batch, in the order of `Columns.blocks`."""
        for arrived in self.columns.blocks(sums):
            yield self._typed(arrived)

    def everybody(self) -> Mapping[Side, Tensor]:
        """The guide features of the whole batch."""
        whole = Arrived(slice(0, self.span.total), self.columns.whole())
        return self._typed(whole).every

    def put_away(self) -> tuple[Problem, tuple[Tensor, ...]]:
        """This problem without its vectors, and the vectors, for autograd to keep until the way back."""
        columns, travelling = self.columns.put_away()
        own = {} if self.features is None else self.features.own
        nothing = self.image[:0].detach()
        left = replace(
            self,
            image=nothing,
            text=nothing,
            columns=columns,
            features=None if self.features is None else replace(self.features, own=dict.fromkeys(own, nothing)),
        )
        return left, (self.image, self.text, *own.values(), *travelling)

    def taken_out(self, tensors: Sequence[Tensor]) -> Problem:
        """What `put_away` left, with its vectors."""
        image, text, *others = tensors
        features = self.features
        if features is not None:
            features = replace(features, own=dict(zip(features.own, others, strict=False)))
            others = others[len(features.own) :]
        columns = self.columns.taken_out(others)
        return replace(self, image=image, text=text, columns=columns, features=features)

    def _typed(self, arrived: Arrived) -> Block:
        text, *guides = arrived.vectors
        every: dict[Side, Tensor] = {}
        if self.features is not None:
            # Where the texts guide by themselves they need not travel twice.
            every = {"text": text.detach().to(self.feature_dtype)}
            every |= {side: each.to(self.feature_dtype) for side, each in zip(self.sides, guides, strict=True)}
        return Block(arrived.columns, text.to(self.image.dtype), every)
