"""How the chunked backend walks over the score matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.contrastive.pairs import Pairs, pairs_of
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.distributed import Ranks, Span


@dataclass(frozen=True, slots=True)
class Plan:
    """Blocks of local images, each against all texts, and the positives of any of them."""

    pairs: Pairs
    blocks: list[slice]
    span: Span
    ranks: Ranks


def planned(problem: Problem, block_bytes: int | None) -> Plan:
    """Blocks of at most `block_bytes` of scores; None is the default of the device."""
    most = block_bytes_on(problem.text.device) if block_bytes is None else block_bytes
    row_bytes = problem.scale.element_size() * max(1, len(problem.text))
    # Masks, guide similarities and a teacher's scores double what lives beside a block of scores.
    beside = 1 if problem.features is None else 2
    blocks = even_blocks(problem.span.local, most // (row_bytes * beside))
    with torch.no_grad():
        return Plan(pairs_of(problem, blocks), blocks, problem.span, problem.ranks)
