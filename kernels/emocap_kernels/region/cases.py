"""Defines inputs of the local loss for tests and benchmarks. Each case says which difficulty it tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True, slots=True)
class RegionCase:
    """Describes the sizes, the scale and the sharpness of a batch. `why` names the difficulty that the case tests."""

    name: str
    rows: int
    patches: int
    sentences: int
    width: int
    scale: float
    sharpness: float
    why: str


CASES = (
    RegionCase("one of each", 1, 1, 1, 4, 100.0, 10.0, "no negatives: the loss is exactly 0"),
    RegionCase("odd", 7, 5, 19, 6, 14.3, 10.0, "no size is a multiple of a tile"),
    RegionCase("few sentences", 11, 9, 3, 8, 20.0, 10.0, "most images own none and are candidates only"),
    RegionCase("mean pooling", 6, 8, 12, 8, 20.0, 0.0, "sharpness 0"),
    RegionCase("best patch", 6, 8, 12, 8, 100.0, 100.0, "the softmax over patches is nearly one-hot"),
    RegionCase("tails", 17, 33, 65, 17, 50.0, 10.0, "one more than a tile in every size"),
)


@dataclass(frozen=True, slots=True)
class RegionVectors:
    """Holds the vectors of a case.

    Attributes:
        patches: [rows, patches, width], unit vectors.
        sentences: [sentences, width], unit vectors.
        owner: int64 [sentences], the row of `patches` to which each sentence belongs.
    """

    patches: Tensor
    sentences: Tensor
    owner: Tensor


def draw(case: RegionCase, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> RegionVectors:
    """Returns random vectors of the sizes of `case`. Equal seeds give equal vectors."""
    source = torch.Generator().manual_seed(seed)
    patches = torch.randn(case.rows, case.patches, case.width, generator=source, dtype=torch.float64)
    sentences = torch.randn(case.sentences, case.width, generator=source, dtype=torch.float64)
    owner = torch.randint(0, case.rows, (case.sentences,), generator=source)
    return RegionVectors(normalize(patches, dim=2).to(dtype), normalize(sentences, dim=1).to(dtype), owner)
