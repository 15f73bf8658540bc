"""The rule of mined positives, written once for both losses and for all backends but the specification.

A rule with a threshold alone asks each pair whether it is similar enough, so a backend answers it tile by tile. A rule
with `top_k` compares all candidates of an anchor; it is answered once, as lists (`MinedLists`), and tiles draw from
them. What a backend brings along is how it compares: by products of torch, or by kernels.

The global loss mines samples for samples. The local loss mines sentences for sentences, and a mined sentence counts
for the image that owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emocap_kernels.mining import Guide, Mining, nearest
from emocap_kernels.targets import Masks

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")
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


def tile_products(guide: Guide) -> tuple[Products, ...]:
    """The similarities that decide about a tile: of row and column anchors, or one entry where both read the same."""
    images, texts = IMAGE_ANCHORS[guide], flipped(TEXT_ANCHORS[guide])
    return (images,) if images == texts else (images, texts)


def sides_needed(mining: Mining) -> set[Side]:
    """The sides of which every rank needs the features of the whole batch."""
    texts = TEXT_ANCHORS[mining.guide]
    by_text = flipped(texts) if mining.top_k is None else texts
    return {side for _, side in (*IMAGE_ANCHORS[mining.guide], *by_text)}


def compares_sides(mining: Mining) -> bool:
    """Returns whether the guide compares images with texts, as the scores do."""
    return any(anchor != candidate for anchor, candidate in IMAGE_ANCHORS[mining.guide])


def compares_images(mining: Mining) -> bool:
    """Returns whether the guide compares images with images."""
    return ("image", "image") in (*IMAGE_ANCHORS[mining.guide], *TEXT_ANCHORS[mining.guide])


@dataclass(frozen=True, slots=True)
class MinedLists:
    """The candidates that a rule with `top_k` mined for each anchor, as global indices; -1 is none.

    Attributes:
        by_row: [anchors of this rank, at most top_k], columns.
        by_column: [all columns, at most top_k], rows.
        first: Global index of local row 0.
        row_of: The global row of each anchor of `by_row`, int64; None if anchor r is local row r.
    """

    by_row: Tensor
    by_column: Tensor
    first: int
    row_of: Tensor | None = None

    def masks(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Bool [rows, columns] each: what row anchors and what column anchors mined, for local `rows`.

        The host reads no value, so that it need not wait for the device.
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
    """Bool [height, width], true at the pairs that lie inside."""
    height, width = shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # One more, where pairs outside go.
    mask = torch.zeros(height * width + 1, dtype=torch.bool, device=row.device)
    mask.index_fill_(0, torch.where(inside, row * width + column, height * width).flatten(), True)
    return mask[:-1].view(height, width)


def nearest_lists(
    similarity: Callable[[slice], Tensor], own: Tensor, blocks: list[slice], mining: Mining, *, candidates: int
) -> Tensor:
    """The candidates mined for each anchor of this rank, by products of torch.

    Args:
        similarity: Returns that of a block of anchors with all candidates, [anchors, candidates]; overwritten.
        own: int64 [anchors], the candidate that is no candidate of this anchor.
        blocks: The anchors, in order, as many as are compared at once.
        mining: A rule with `top_k`.
        candidates: Their number.

    Returns:
        int64 [anchors, at most top_k], -1 for none.
    """
    assert mining.top_k is not None
    parts = [own.new_empty(0, max(0, min(mining.top_k, candidates - 1)))]
    for rows in blocks:
        found = similarity(rows)
        mined = nearest(found, own[rows], mining.top_k)
        if mining.threshold is not None:
            mined.masked_fill_(found.gather(1, mined) < mining.threshold, -1)
        parts.append(mined)
    return torch.cat(parts)


def treated(known: Tensor, by_row: Tensor, by_column: Tensor, mining: Mining) -> Masks:
    """The targets of a tile. Known positives stay positives; the treatment says what mined pairs become."""
    if mining.attracts:
        return Masks(known | by_row, known | by_column)
    return Masks(known, known, by_row & ~known, by_column & ~known)
