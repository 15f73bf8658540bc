"""Applies the rule of mined positives, for both losses and all backends except the reference.

With a threshold alone, the similarity of a pair decides whether the pair is mined, so a backend finds the mined pairs
tile by tile. With `top_k`, all candidates of an anchor must be compared. Therefore lists of mined candidates
(`MinedLists`) are computed once, and the masks of every tile are made from these lists. Backends differ only in how
they compute similarities: by torch, or by kernels. The reference repeats the rule in formulas of its own, because it is
the specification (decision 26).

The global loss compares samples with samples. The local loss compares sentences with sentences. If sentence m is mined
for sentence n, then m is also mined for the image of n, and the image of m is mined for n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emocap_kernels.mining import Guide, Mining, top_k_indices
from emocap_kernels.targets import MaskTargets

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
# The similarities that a guide reads, each as (modality of the anchor, modality of the candidate). Of two
# similarities, the smaller one decides.
GuideSimilarities = tuple[tuple[Modality, Modality], ...]

# The guide table of docs/method.md.
IMAGE_ANCHORS: Mapping[Guide, GuideSimilarities] = {
    "counterpart": (("text", "text"),),
    "text": (("text", "text"),),
    "image": (("image", "image"),),
    "consensus": (("text", "text"), ("image", "image")),
    "joint": (("image", "text"),),
}
TEXT_ANCHORS: Mapping[Guide, GuideSimilarities] = {
    "counterpart": (("image", "image"),),
    "text": (("text", "text"),),
    "image": (("image", "image"),),
    "consensus": (("text", "text"), ("image", "image")),
    "joint": (("text", "image"),),
}


def transposed(similarities: GuideSimilarities) -> GuideSimilarities:
    """Returns `similarities` with the two modalities of each pair swapped.

    Each pair is (modality of the anchor, modality of the candidate). The result is for a similarity matrix whose rows
    are the candidates and whose columns are the anchors.
    """
    return tuple((candidate, anchor) for anchor, candidate in similarities)


def tile_similarities(guide: Guide) -> tuple[GuideSimilarities, ...]:
    """Returns the similarities by which pairs of a tile are mined: first for row anchors, then for column anchors.

    The rows are images and the columns are texts. `guide` is the field of `Mining` that selects the similarities. A
    similarity is a pair of modalities, that of the rows and that of the columns. If the similarities for row anchors
    and for column anchors are equal, the result has one entry instead of two.
    """
    images, texts = IMAGE_ANCHORS[guide], transposed(TEXT_ANCHORS[guide])
    return (images,) if images == texts else (images, texts)


def modalities_to_gather(mining: Mining) -> set[Modality]:
    """Returns the modalities whose guide features every rank needs for the whole batch.

    Guide features are the vectors that mining compares. Mining compares the rows of a rank with the rows of all ranks.
    A rank already holds the features of its own rows in both modalities. So only the modalities in which it needs the
    rows of other ranks are gathered.
    """
    texts = TEXT_ANCHORS[mining.guide]
    # With `top_k` a rank mines for its own texts, and the candidates come from other ranks. With a threshold alone, it
    # decides the pairs of a tile, in which its own images are the candidates and the texts of other ranks the anchors.
    by_text = transposed(texts) if mining.top_k is None else texts
    return {candidate for _, candidate in (*IMAGE_ANCHORS[mining.guide], *by_text)}


def compares_modalities(mining: Mining) -> bool:
    """Returns whether the mining rule compares images with texts, as the scores do."""
    return any(anchor != candidate for anchor, candidate in IMAGE_ANCHORS[mining.guide])


def compares_images(mining: Mining) -> bool:
    """Returns whether the mining rule compares images with images in at least one direction."""
    return ("image", "image") in (*IMAGE_ANCHORS[mining.guide], *TEXT_ANCHORS[mining.guide])


@dataclass(frozen=True, slots=True)
class MinedLists:
    """Holds the candidates that a rule with `top_k` mined for each anchor, as global indices; -1 marks an unused entry.

    Attributes:
        by_row: [row anchors of this rank, at most top_k], indices of the columns mined for each row anchor.
        by_column: [all columns, at most top_k], indices of the rows mined for each column.
        first: Global index of local row 0.
        row_of: int64 [row anchors of this rank], the global index of each anchor's row. It is needed if several anchors
            (the sentences of an image) belong to one row. None means that anchor r is local row r.
    """

    by_row: Tensor
    by_column: Tensor
    first: int
    row_of: Tensor | None = None

    def masks(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Returns two bool masks, [rows, columns]: the pairs mined for row anchors, and those mined for column anchors.

        `rows` are local and `columns` global indices. No value is copied to the host, so the host does not wait for the
        device.
        """
        shape = rows.stop - rows.start, columns.stop - columns.start
        top = self.first + rows.start
        if self.row_of is None:
            mined = self.by_row[rows]
            row = torch.arange(len(mined), device=mined.device)
        else:
            # The anchors of these rows lie anywhere in the list, so all are taken. `_mask` leaves out other rows.
            mined, row = self.by_row, self.row_of - top
        by_row = _mask(row[:, None].expand_as(mined), mined.long() - columns.start, shape)
        mined = self.by_column[columns]
        column = torch.arange(len(mined), device=mined.device)
        by_column = _mask(mined.long() - top, column[:, None].expand_as(mined), shape)
        return by_row, by_column


def _mask(row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
    """Returns a bool mask of `shape` that is True at the pairs (`row`, `column`). Pairs outside of it are ignored."""
    height, width = shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # Pairs outside of the mask are written to one extra element. To select the pairs inside, the host would have to
    # wait for their number.
    mask = torch.zeros(height * width + 1, dtype=torch.bool, device=row.device)
    mask.index_fill_(0, torch.where(inside, row * width + column, height * width).flatten(), True)
    return mask[:-1].view(height, width)


def mine_top_k(
    similarity: Callable[[slice], Tensor], own: Tensor, blocks: list[slice], mining: Mining, *, candidates: int
) -> Tensor:
    """Returns the candidates that a rule with `top_k` mines for each anchor of this rank.

    Args:
        similarity: Returns the similarities of a block of anchors with all candidates, [anchors, candidates]. The
            returned tensor is overwritten.
        own: int64 [anchors], the index of the candidate that belongs to the same sample as the anchor (or is the same
            sentence). It is not mined, unless a similarity is NaN.
        blocks: Slices that cover the anchors in order. The anchors of a slice are compared at once.
        mining: A rule with `top_k`.
        candidates: Number of candidates.

    Returns:
        int64 [anchors, at most top_k], the indices of the mined candidates. -1 replaces a candidate whose similarity is
        below the threshold.
    """
    assert mining.top_k is not None
    # A rank without anchors must return as many columns as the others, because the lists are gathered.
    parts = [own.new_empty(0, max(0, min(mining.top_k, candidates - 1)))]
    for rows in blocks:
        found = similarity(rows)
        mined = top_k_indices(found, own[rows], mining.top_k)
        if mining.threshold is not None:
            # `top_k_indices` has replaced NaN in `found` by -inf, which misses every threshold.
            mined.masked_fill_(found.gather(1, mined) < mining.threshold, -1)
        parts.append(mined)
    return torch.cat(parts)


def apply_treatment(known: Tensor, by_row: Tensor, by_column: Tensor, mining: Mining) -> MaskTargets:
    """Returns the targets of a tile: its positives and the excluded pairs.

    Mined pairs become positives or are excluded, as `mining.treatment` says. Known positives stay positives.

    Args:
        known: Bool [rows, columns], pairs that are positives without mining.
        by_row: Bool [rows, columns], pairs that were mined for row anchors.
        by_column: Bool [rows, columns], pairs that were mined for column anchors.
        mining: The rule.
    """
    if mining.attracts:
        return MaskTargets(known | by_row, known | by_column)
    return MaskTargets(known, known, by_row & ~known, by_column & ~known)
