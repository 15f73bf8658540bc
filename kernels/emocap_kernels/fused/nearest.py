"""The nearest candidates of every local anchor, whole blocks of candidates at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import ceil_div
from emocap_kernels.fused.descriptors import aligned, tiled
from emocap_kernels.fused.kernels.nearest import nearest_kernel
from emocap_kernels.fused.launch import launch
from emocap_kernels.fused.shapes import Shape, strips


@dataclass(frozen=True, slots=True)
class Candidates:
    """A block of candidates: their first global index, and one or two similarities as (anchors, candidates) vectors."""

    start: int
    sides: Sequence[tuple[Tensor, Tensor]]


def nearest_of(
    blocks: Iterator[Candidates], local: int, first: int, shape: Shape, *, top_k: int, threshold: float | None
) -> Tensor:
    """The `top_k` most similar candidates of each local anchor; of two similarities the smaller one counts.

    Args:
        blocks: All candidates of the batch, in any order of blocks.
        local: Number of anchors.
        first: Global index of anchor 0, which is no candidate of its own.
        shape: Of the tiles.
        top_k: At most as many as a kernel holds in registers.
        threshold: Only candidates of at least this similarity count.

    Returns:
        int32 [local, top_k], global indices, of equal similarities the lower one first; -1 for none.
    """
    found: list[tuple[int, Tensor, Tensor]] = []
    for block in blocks:
        values, indices = _of_block(block, local, first, shape, top_k=top_k, threshold=threshold)
        found.append((block.start, values, torch.where(indices >= 0, indices + block.start, indices)))
    # Blocks and strips in the order of their columns: a stable sort keeps the lower index first among equals.
    found.sort(key=lambda each: each[0])
    values = torch.cat([each[1] for each in found], dim=1)
    indices = torch.cat([each[2] for each in found], dim=1)
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    nearest = indices.gather(1, order)
    if nearest.shape[1] == top_k:
        return nearest
    return torch.nn.functional.pad(nearest, (0, top_k - nearest.shape[1]), value=-1)


def _of_block(
    block: Candidates, local: int, first: int, shape: Shape, *, top_k: int, threshold: float | None
) -> tuple[Tensor, Tensor]:
    """Similarities and indices within the block, [local, slots] each."""
    left, right = (aligned(each) for each in block.sides[0])
    second_left, second_right = (aligned(each) for each in block.sides[-1])
    number, strip = strips(local, len(right), shape)
    slots = 1 << max(1, (top_k - 1).bit_length())
    values = left.new_full((number, local, slots), float("-inf"), dtype=torch.float32)
    indices = left.new_full((number, local, slots), -1, dtype=torch.int32)
    launch(
        nearest_kernel,
        (ceil_div(local, shape.rows), number),
        tiled(left, shape.rows, shape.depth),
        tiled(right, shape.columns, shape.depth),
        tiled(second_left, shape.rows, shape.depth),
        tiled(second_right, shape.columns, shape.depth),
        values,
        indices,
        float("-inf") if threshold is None else threshold,
        first - block.start,
        local,
        len(right),
        strip,
        left.shape[1],
        second_left.shape[1],
        TOP_K=top_k,
        bK=slots,
        TWO=len(block.sides) > 1,
        **shape.options(),
    )
    return values.transpose(0, 1).flatten(1), indices.transpose(0, 1).flatten(1)
