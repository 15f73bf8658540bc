"""Finds the most similar candidates of every local anchor with a kernel, one block of candidates at a time.

Both losses use this module for rules with `top_k`: the global loss compares samples, and the local loss compares
sentences. The kernel finds the best candidates in each strip. Operations of torch merge those of all strips and blocks,
and do not make the host wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.fused.kernels.nearest import nearest_kernel
from emocap_kernels.fused.launch import aligned, launch, tile_descriptor
from emocap_kernels.fused.tiling import TileConfig, strips


@dataclass(frozen=True, slots=True)
class CandidateBlock:
    """Holds the vectors of some candidates and those of all local anchors.

    The dot products of anchors with candidates are the similarities.

    Attributes:
        start: Global index of the first candidate.
        vectors: (vectors of the anchors, vectors of the candidates) for each similarity; there are one or two.
    """

    start: int
    vectors: Sequence[tuple[Tensor, Tensor]]


def nearest_candidates(
    blocks: Iterator[CandidateBlock],
    anchors: int,
    first: int,
    tile: TileConfig,
    *,
    top_k: int,
    threshold: float | None,
) -> Tensor:
    """Returns the `top_k` most similar candidates of each local anchor.

    If the blocks hold vectors for two similarities, the smaller of the two counts.

    Args:
        blocks: All candidates of the batch, in any order of blocks. If the iterator receives blocks from other ranks,
            this function is a collective.
        anchors: Number of local anchors.
        first: Global index of anchor 0. The candidate with the same global index as an anchor is never selected for it.
        tile: The tile size of the kernel.
        top_k: At most `backend.MAX_TOP_K`, because a kernel holds the lists in registers.
        threshold: Candidates of a lower similarity are left out; None leaves out none.

    Returns:
        int32 [anchors, top_k], global indices by descending similarity. Of equal similarities the lower index comes
        first. -1 marks an unused entry.
    """
    found: list[tuple[int, Tensor, Tensor]] = []
    for block in blocks:
        values, indices = _of_block(block, anchors, first, tile, top_k=top_k, threshold=threshold)
        found.append((block.start, values, torch.where(indices >= 0, indices + block.start, indices)))
    # Blocks and strips are ordered by their columns, so a stable sort keeps the lower index first among equals.
    found.sort(key=lambda each: each[0])
    values = torch.cat([each[1] for each in found], dim=1)
    indices = torch.cat([each[2] for each in found], dim=1)
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    nearest = indices.gather(1, order)
    return torch.nn.functional.pad(nearest, (0, top_k - nearest.shape[1]), value=-1)


def _of_block(
    block: CandidateBlock, anchors: int, first: int, tile: TileConfig, *, top_k: int, threshold: float | None
) -> tuple[Tensor, Tensor]:
    """Returns the similarities of the most similar candidates of each anchor, and their indices within the block.

    The kernel writes one list for each strip of candidates, so both tensors are [anchors, strips * slots]. `slots` is
    the length of a list, a power of two of at least `top_k`.
    """
    left, right = (aligned(each) for each in block.vectors[0])
    # With one similarity these are the first vectors again, and the kernel does not read them.
    second_left, second_right = (aligned(each) for each in block.vectors[-1])
    number, strip = strips(anchors, len(right), tile)
    # Registers hold powers of two.
    slots = 1 << max(1, (top_k - 1).bit_length())
    # The kernel writes the first `top_k` slots of each anchor. The others keep these values and are never selected.
    values = left.new_full((number, anchors, slots), float("-inf"), dtype=torch.float32)
    indices = left.new_full((number, anchors, slots), -1, dtype=torch.int32)
    launch(
        nearest_kernel,
        (ceil_div(anchors, tile.rows), number),
        tile_descriptor(left, tile.rows, tile.depth),
        tile_descriptor(right, tile.columns, tile.depth),
        tile_descriptor(second_left, tile.rows, tile.depth),
        tile_descriptor(second_right, tile.columns, tile.depth),
        values,
        indices,
        float("-inf") if threshold is None else threshold,
        first - block.start,
        anchors,
        len(right),
        strip,
        left.shape[1],
        second_left.shape[1],
        TOP_K=top_k,
        bK=slots,
        TWO_SIMILARITIES=len(block.vectors) > 1,
        **tile.options(),
    )
    return values.transpose(0, 1).flatten(1), indices.transpose(0, 1).flatten(1)
