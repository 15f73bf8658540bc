"""Prepares the positives of a batch for kernels: groups of known positives, and the rule by which others are mined.

Known positives are positives without mining: image and text of one sample, or of samples with equal ids.

Unless the scores themselves decide which pairs are mined, the mined pairs are written to a mask with one byte for each
pair of a chunk. The bit `MINED_BY_ROW` is set if the pair was mined for the row's anchor, and the bit `MINED_BY_COLUMN`
if it was mined for the column's anchor.

`FusedPositives` describes the whole batch and is made once for each computation of the loss. Its method `in_block`
returns a `BlockPositives` for a block of texts. The method `mask` of this object computes the mask of a chunk; it is
called for each chunk, in forward and again in backward. Decision 10 says why the mask is computed separately and not
in the kernels of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.contrastive.batch import ContrastiveBatch, GuideFeatures, TextBlock
from emocap_kernels.contrastive.fused.kernels.mining import AND, OR, STORE, threshold_kernel
from emocap_kernels.contrastive.fused.kernels.tiles import (
    MINED_BY_COLUMN,
    MINED_BY_ROW,
    RULE_MASK,
    RULE_NONE,
    RULE_SCORE,
)
from emocap_kernels.fused.launch import ALIGNMENT_BYTES, aligned, launch, tile_descriptor
from emocap_kernels.fused.nearest import CandidateBlock, nearest_candidates
from emocap_kernels.fused.tiling import Range, TileConfig, tile_config_for
from emocap_kernels.mining import Mining
from emocap_kernels.positives import GuideSimilarities, MinedLists, Modality, tile_similarities


@dataclass(frozen=True, slots=True)
class FusedPositives:
    """Holds what determines which pairs of a tile are positives, except the guide features (what mining compares).

    Attributes:
        groups: int32 [total], the group of each sample. Samples of the same group are positives of each other without
            mining (known positives).
        group_sizes: float32 [total], the size of each sample's group.
        has_ids: Whether groups may hold more than one sample.
        mining: The rule by which further positives are mined; None if only known positives are positives.
        mined_by_score: Whether the cosine from which a pair's score is computed also decides whether the pair is mined.
        lists: The mined candidates of each anchor, int32; None unless the rule has `top_k`.
        own: Global indices of the local rows.
    """

    groups: Tensor
    group_sizes: Tensor
    has_ids: bool
    mining: Mining | None
    mined_by_score: bool
    lists: MinedLists | None
    own: slice

    @staticmethod
    def of(batch: ContrastiveBatch) -> FusedPositives:
        """Prepares the positives, and mines the lists of candidates if the rule has `top_k`.

        This is a collective, because the lists of text anchors are gathered: all ranks must call it.
        """
        groups, sizes = _groups(batch)
        return FusedPositives(
            groups=groups,
            group_sizes=sizes,
            has_ids=batch.ids is not None,
            mining=batch.mining,
            mined_by_score=batch.mined_by_score,
            lists=batch.mined_lists(lambda similarities: _mine_top_k(batch, similarities)),
            own=batch.partition.own,
        )

    @property
    def rule(self) -> int:
        """Returns the kernel option `RULE`, which says how a kernel finds mined pairs."""
        if self.mining is None:
            return RULE_NONE.value
        return RULE_SCORE.value if self.mined_by_score else RULE_MASK.value

    @property
    def masked(self) -> bool:
        """Returns whether pairs other than image and text of one sample may be positives, or excluded from the loss."""
        return self.has_ids or self.rule != RULE_NONE.value

    @property
    def attract(self) -> bool:
        """Returns the kernel option `ATTRACT`, which says whether mined pairs become positives."""
        return self.mining is None or self.mining.attracts

    @property
    def threshold(self) -> float:
        """Returns the least cosine of a mined pair, or -inf if the rule has no threshold."""
        threshold = None if self.mining is None else self.mining.threshold
        return float("-inf") if threshold is None else threshold

    def options(self) -> dict[str, bool | int]:
        """Returns the options by which `statistics_kernel` and `sigmoid_kernel` find positives."""
        return {"HAS_IDS": self.has_ids, "RULE": self.rule, "ATTRACT": self.attract}

    def in_block(self, block: TextBlock, features: GuideFeatures | None) -> BlockPositives:
        """Returns an object that describes which pairs of a local row and a text of `block` are positives.

        `features` are the vectors that mining compares (guide features), of the local rows; None if the batch has none.
        """
        rows: dict[Modality, Tensor] = {}
        columns: dict[Modality, Tensor] = {}
        if self.rule == RULE_MASK.value and self.lists is None and features is not None:
            rows = {name: aligned(each) for name, each in features.own.items()}
            columns = {name: aligned(each) for name, each in block.guides.items()}
        return BlockPositives(self, block.columns, rows, columns)


@dataclass(frozen=True, slots=True)
class BlockPositives:
    """Describes the positives of the local rows in one block of columns. Columns are numbered from the block's start.

    Attributes:
        all: The positives of the batch.
        columns: Global indices of the columns of the block.
        left: Guide features (the vectors that mining compares) of the local rows by modality, padded by `aligned` so
            that each row begins at an aligned address. It is empty unless a mask is computed from them, by comparing
            similarities with a threshold.
        right: The same for the columns.
    """

    all: FusedPositives
    columns: slice
    left: Mapping[Modality, Tensor]
    right: Mapping[Modality, Tensor]

    @property
    def first(self) -> int:
        """Returns the column of the text that belongs to the image of local row 0, counted from the block's start.

        It may lie outside of the block.
        """
        return self.all.own.start - self.columns.start

    @property
    def groups(self) -> tuple[Tensor, Tensor]:
        """Returns the group of each local row and of each column of the block, int32 [local] and int32 [columns].

        A row and a column of the same group are positives of each other without mining.
        """
        return self.all.groups[self.all.own], self.all.groups[self.columns]

    def mask(self, rows: Range, columns: Range, tile: TileConfig) -> TensorDescriptor | None:
        """Computes the mask of mined pairs of local `rows` and `columns`; returns None if the kernels read no mask.

        The returned descriptor is the object by which kernels load tiles of the mask.
        """
        if self.all.rule != RULE_MASK.value:
            return None
        lists = self.all.lists
        mask = self._threshold_mask(rows, columns) if lists is None else self._list_mask(lists, rows, columns)
        return tile_descriptor(mask, tile.rows, tile.columns)

    def _threshold_mask(self, rows: Range, columns: Range) -> Tensor:
        assert self.all.mining is not None
        # The first launch stores all bits, so the memory need not be initialised.
        mask = self.all.groups.new_empty(_height(rows), _pitch(columns), dtype=torch.uint8)
        decisive = tile_similarities(self.all.mining.guide)
        if len(decisive) == 1:
            both = MINED_BY_ROW.value | MINED_BY_COLUMN.value
            for number, similarity in enumerate(decisive[0]):
                # Of two similarities the smaller one decides, so a pair must reach the threshold in both.
                self._add_bits(mask, similarity, rows, columns, both, combine=(AND if number else STORE).value)
            return mask
        # Only the guide `counterpart` mines rows and columns by different similarities, by one each.
        (of_rows,), (of_columns,) = decisive
        self._add_bits(mask, of_rows, rows, columns, MINED_BY_ROW.value, combine=STORE.value)
        self._add_bits(mask, of_columns, rows, columns, MINED_BY_COLUMN.value, combine=OR.value)
        return mask

    def _add_bits(
        self,
        mask: Tensor,
        similarity: tuple[Modality, Modality],
        rows: Range,
        columns: Range,
        bits: int,
        *,
        combine: int,
    ) -> None:
        # The kernel needs registers for one product only, so its tile may be as tall as without a mask.
        left, right = self.left[similarity[0]], self.right[similarity[1]]
        tile = tile_config_for(left.dtype, left.device, masked=False)
        grid = (ceil_div(_height(rows), tile.rows), ceil_div(columns[1] - columns[0], tile.columns))
        launch(
            threshold_kernel,
            grid,
            tile_descriptor(left, tile.rows, tile.depth),
            tile_descriptor(right, tile.columns, tile.depth),
            tile_descriptor(mask, tile.rows, tile.columns),
            self.all.threshold,
            bits,
            rows[0],
            columns[0],
            left.shape[1],
            COMBINE=combine,
            **tile.options(),
        )

    def _list_mask(self, lists: MinedLists, rows: Range, columns: Range) -> Tensor:
        first = self.columns.start
        by_row, by_column = lists.masks(slice(*rows), slice(first + columns[0], first + columns[1]))
        mask = by_row.new_zeros(_height(rows), _pitch(columns), dtype=torch.uint8)
        inside = mask[:, : columns[1] - columns[0]]
        inside.add_(by_row, alpha=MINED_BY_ROW.value).add_(by_column, alpha=MINED_BY_COLUMN.value)
        return mask


def _groups(batch: ContrastiveBatch) -> tuple[Tensor, Tensor]:
    """Returns the group of each sample, int32 [total], and the size of that group, float32 [total].

    Samples with equal ids form a group. No value is copied to the host; `torch.unique` would do that.
    """
    total = batch.partition.total
    numbers = torch.arange(total, device=batch.image.device)
    if batch.ids is None:
        return numbers.int(), batch.scale.new_ones(total, dtype=torch.float32)
    # In the order of the ids, a group begins where the id differs from the one before. Counting these places numbers
    # the groups, and `scatter_` brings the numbers back to the order of the samples.
    ordered, order = batch.ids.sort(stable=True)
    is_new = torch.ones_like(ordered)
    is_new[1:] = ordered[1:] != ordered[:-1]
    groups = torch.empty_like(order).scatter_(0, order, is_new.cumsum(0) - 1)
    sizes = torch.zeros_like(groups).index_add_(0, groups, torch.ones_like(groups))
    return groups.int(), sizes[groups].float()


def _mine_top_k(batch: ContrastiveBatch, similarities: GuideSimilarities) -> Tensor:
    """Returns the mined candidates of each local anchor, int32 [local, top_k]; -1 marks an unused entry.

    `similarities` says what is compared: one or two entries (modality of the anchor, modality of the candidate).
    """
    mining = batch.mining
    assert mining is not None
    assert mining.top_k is not None
    assert batch.features is not None
    own = batch.features.own
    tile = tile_config_for(own[similarities[0][0]].dtype, batch.image.device, masked=True)

    def candidates() -> Iterator[CandidateBlock]:
        for block in batch.blocks():
            yield CandidateBlock(block.columns.start, [(own[a], block.guides[c]) for a, c in similarities])

    local, first = batch.partition.local, batch.partition.first
    return nearest_candidates(candidates(), local, first, tile, top_k=mining.top_k, threshold=mining.threshold)


def _height(rows: Range) -> int:
    return rows[1] - rows[0]


def _pitch(columns: Range) -> int:
    """Returns the number of bytes of a mask's row, rounded up so that each row begins at an aligned address."""
    width = columns[1] - columns[0]
    return width + -width % ALIGNMENT_BYTES
