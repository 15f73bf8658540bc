"""How the chunked backend walks over the score matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.contrastive.pairs import Pairs, pairs_of
from emocap_kernels.contrastive.problem import Problem


@dataclass(frozen=True, slots=True)
class Plan:
    """Local images that are taken together against each block of texts, and the positives of any of them."""

    pairs: Pairs
    rows: list[slice]


def planned(problem: Problem, block_bytes: int | None) -> Plan:
    """Tiles of at most `block_bytes` of scores; None is the default of the device."""
    most = block_bytes_on(problem.image.device) if block_bytes is None else block_bytes
    row_bytes = problem.scale.element_size() * max(1, problem.span.total)
    # Masks, guide similarities and a teacher's scores double what lives beside a tile of scores.
    beside = 1 if problem.features is None else 2
    rows = even_blocks(problem.span.local, most // (row_bytes * beside))
    with torch.no_grad():
        return Plan(pairs_of(problem, rows), rows)
