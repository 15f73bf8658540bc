"""Defines inputs of the global loss for tests and benchmarks. Each case says which difficulty it tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

VectorKind = Literal["random", "aligned", "collapsed", "duplicates", "opposed"]


@dataclass(frozen=True, slots=True)
class ContrastiveCase:
    """Describes the sizes, the scale and the kind of vectors of a batch; `why` names the difficulty that it tests."""

    name: str
    rows: int
    width: int
    scale: float
    kind: VectorKind
    why: str


CASES = (
    ContrastiveCase("one sample", 1, 8, 100.0, "random", "no negatives: the loss is exactly 0"),
    ContrastiveCase("odd", 13, 7, 14.3, "random", "no size is a multiple of a tile"),
    ContrastiveCase("tails", 257, 65, 20.0, "random", "one more than a tile in both sizes"),
    ContrastiveCase("sharp", 96, 33, 100.0, "random", "the largest scale: exponents of +-100"),
    ContrastiveCase("aligned", 96, 33, 100.0, "aligned", "a trained model: losses near 0 must not round to 0"),
    ContrastiveCase("collapsed", 64, 16, 100.0, "collapsed", "equal scores: a plain sum of exponentials overflows"),
    ContrastiveCase("duplicates", 60, 16, 50.0, "duplicates", "equal rows: ties, and indices that are not unique"),
    ContrastiveCase("opposed", 64, 16, 100.0, "opposed", "the own pair is the worst: its probability underflows"),
)


def draw(case: ContrastiveCase, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns image and text vectors of unit length, [rows, width] each. Equal seeds give equal vectors."""
    source = torch.Generator().manual_seed(seed)
    image, noise = torch.randn(2, case.rows, case.width, generator=source, dtype=torch.float64)
    text = noise
    if case.kind == "aligned":
        text = image + 0.05 * noise
    elif case.kind == "opposed":
        text = 0.05 * noise - image
    elif case.kind == "collapsed":
        # Entries of equal size, whose products add up without rounding where the width is a power of four: the scores
        # are equal whatever order a matrix product adds in, which differs between processors.
        image = text = image[:1].sign().expand(case.rows, case.width)
    elif case.kind == "duplicates":
        image, text = image[: case.rows // 4].repeat(4, 1), noise[: case.rows // 2].repeat_interleave(2, 0)
    return normalize(image, dim=1).to(dtype), normalize(text, dim=1).to(dtype)
