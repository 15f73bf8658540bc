"""The rule of mined positives, for both losses and all backends except the reference.

A rule with only a threshold asks of each pair whether it is similar enough, so a backend answers it tile by tile. A
rule with `top_k` compares all candidates of an anchor; it is answered once, as lists (`MinedLists`), from which the
masks of any tile are made. A backend contributes only how similarities are computed: by torch, or by kernels.

The global loss mines samples for samples. The local loss mines sentences for sentences, and a mined sentence counts
for the image that owns it.
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
# The similarities that a guide reads, each as (modality of the anchor, modality of the candidate). Of two, the
# smaller one decides.
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
    """Returns the same similarities with the anchors as columns: entry (i, j) belongs to anchor j, candidate i."""
    return tuple((candidate, anchor) for anchor, candidate in similarities)


def tile_similarities(guide: Guide) -> tuple[GuideSimilarities, ...]:
    """Returns what decides about a tile: first for its rows, then for its columns; one entry where both are equal."""
    images, texts = IMAGE_ANCHORS[guide], transposed(TEXT_ANCHORS[guide])
    return (images,) if images == texts else (images, texts)


def modalities_to_gather(mining: Mining) -> set[Modality]:
    """Returns the modalities of which every rank needs the guide features of the whole batch."""
    texts = TEXT_ANCHORS[mining.guide]
    by_text = transposed(texts) if mining.top_k is None else texts
    return {candidate for _, candidate in (*IMAGE_ANCHORS[mining.guide], *by_text)}


def compares_modalities(mining: Mining) -> bool:
    """Returns whether the guide compares images with texts, as the scores do."""
    return any(anchor != candidate for anchor, candidate in IMAGE_ANCHORS[mining.guide])


def compares_images(mining: Mining) -> bool:
    """Returns whether the guide compares images with images."""
    return ("image", "image") in (*IMAGE_ANCHORS[mining.guide], *TEXT_ANCHORS[mining.guide])


@dataclass(frozen=True, slots=True)
class MinedLists:
    """The candidates that a rule with `top_k` mined for each anchor, as global indices. -1 means none.

    Attributes:
        by_row: [anchors of this rank, at most top_k], column indices.
        by_column: [all columns, at most top_k], row indices.
        first: Global index of local row 0.
        row_of: int64, the global row of each anchor of `by_row`, where several anchors belong to one row; None if
            anchor r is local row r.
    """

    by_row: Tensor
    by_column: Tensor
    first: int
    row_of: Tensor | None = None

    def masks(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Returns the pairs that row anchors mined and those that column anchors mined, bool [rows, columns] each.

        `rows` are local and `columns` global. The host reads no value, so that it does not wait for the device.
        """
        shape = rows.stop - rows.start, columns.stop - columns.start
        top = self.first + rows.start
        if self.row_of is None:
            mined = self.by_row[rows]
            row = torch.arange(len(mined), device=mined.device)
        else:
            mined, row = self.by_row, self.row_of - top
        by_row = _mask(row[:, None].expand_as(mined), mined.long() - columns.start, shape)
        mined = self.by_column[columns]
        column = torch.arange(len(mined), device=mined.device)
        by_column = _mask(mined.long() - top, column[:, None].expand_as(mined), shape)
        return by_row, by_column


def _mask(row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
    """Returns bool [height, width], True at the given pairs; pairs outside of it are left out."""
    height, width = shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # One extra element takes all pairs outside: selecting those inside would have to wait for their number.
    mask = torch.zeros(height * width + 1, dtype=torch.bool, device=row.device)
    mask.index_fill_(0, torch.where(inside, row * width + column, height * width).flatten(), True)
    return mask[:-1].view(height, width)


def mine_top_k(
    similarity: Callable[[slice], Tensor], own: Tensor, blocks: list[slice], mining: Mining, *, candidates: int
) -> Tensor:
    """Returns the candidates mined for each anchor of this rank, with similarities computed by torch.

    Args:
        similarity: Returns the similarities of a block of anchors with all candidates, [anchors, candidates]. They
            are overwritten.
        own: int64 [anchors], the anchor's own pair, which is no candidate.
        blocks: The anchors in order, in blocks that are compared at once.
        mining: A rule with `top_k`.
        candidates: Number of candidates.

    Returns:
        int64 [anchors, at most top_k], -1 where a candidate misses the threshold.
    """
    assert mining.top_k is not None
    parts = [own.new_empty(0, max(0, min(mining.top_k, candidates - 1)))]
    for rows in blocks:
        found = similarity(rows)
        mined = top_k_indices(found, own[rows], mining.top_k)
        if mining.threshold is not None:
            mined.masked_fill_(found.gather(1, mined) < mining.threshold, -1)
        parts.append(mined)
    return torch.cat(parts)


def apply_treatment(known: Tensor, by_row: Tensor, by_column: Tensor, mining: Mining) -> MaskTargets:
    """Returns the targets of a tile. Known positives stay positives; the treatment decides about mined pairs.

    Args:
        known: Bool [rows, columns], pairs that are positives without mining.
        by_row: Bool [rows, columns], pairs that row anchors mined.
        by_column: Bool [rows, columns], pairs that column anchors mined.
        mining: The rule.
    """
    if mining.attracts:
        return MaskTargets(known | by_row, known | by_column)
    return MaskTargets(known, known, by_row & ~known, by_column & ~known)
