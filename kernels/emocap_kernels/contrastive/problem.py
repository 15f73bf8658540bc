"""One call of the global loss as a backend sees it, and the features that guide its mining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emocap_kernels.contrastive.objectives import ContrastiveObjective
from emocap_kernels.distributed.columns import Block as Arrived
from emocap_kernels.distributed.columns import Columns, Sums
from emocap_kernels.distributed.numbers import gather_rows
from emocap_kernels.distributed.ranks import Ranks, Span
from emocap_kernels.mining import Mining, first_twins
from emocap_kernels.positives import (
    IMAGE_ANCHORS,
    TEXT_ANCHORS,
    MinedLists,
    Products,
    Side,
    compares_sides,
)
from emocap_kernels.products import product


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
        bias: 0-dim, added to the scores; 0 if the objective has none.
        guide_scale: 0-dim; the scores of a teacher are `guide_scale` times the cosines of `features`.
        ids: int64 [total], or None if only own pairs are known positives.
        mining: None if only known pairs are positives.
        features: Those that guide the mining, or the teacher's; else None.
        feature_dtype: Of features in products.
        span: Where the local rows lie in the batch.
        ranks: Who holds the others.
    """

    image: Tensor
    text: Tensor
    columns: Columns
    sides: tuple[Side, ...]
    scale: Tensor
    objective: ContrastiveObjective
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

    @property
    def mined_by_score(self) -> bool:
        """Whether a pair is mined if its own cosine, of which the score is made, reaches the threshold."""
        if self.mining is None or self.features is None or self.mining.top_k is not None:
            return False
        return compares_sides(self.mining) and self.features.is_logit

    def mined_lists(self, nearest: Callable[[Products], Tensor]) -> MinedLists | None:
        """The candidates that `top_k` mined, or None without it. All ranks must call this: the lists of texts travel.

        Args:
            nearest: Lists the candidates of each local anchor by the given similarities, [local, at most top_k].
        """
        if self.mining is None or self.mining.top_k is None:
            return None
        images, texts = IMAGE_ANCHORS[self.mining.guide], TEXT_ANCHORS[self.mining.guide]
        of_images = nearest(images)
        of_texts = of_images if texts == images else nearest(texts)
        return MinedLists(of_images, gather_rows(of_texts, self.span, self.ranks), self.span.first)

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
