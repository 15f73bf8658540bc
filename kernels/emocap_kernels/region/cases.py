"""Inputs of the local loss that tests and benchmarks share, each with why it is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True, slots=True)
class Case:
    """A batch to draw; `why` says what breaks on it first."""

    name: str
    rows: int
    patches: int
    sentences: int
    width: int
    scale: float
    sharpness: float
    why: str


CASES = (
    Case("one of each", 1, 1, 1, 4, 100.0, 10.0, "no negatives: the loss is exactly 0"),
    Case("odd", 7, 5, 19, 6, 14.3, 10.0, "nothing is a multiple of anything"),
    Case("few sentences", 11, 9, 3, 8, 20.0, 10.0, "most images own none and are candidates only"),
    Case("mean pooling", 6, 8, 12, 8, 20.0, 0.0, "sharpness 0"),
    Case("best patch", 6, 8, 12, 8, 100.0, 100.0, "the softmax over patches is nearly one-hot"),
    Case("tails", 17, 33, 65, 17, 50.0, 10.0, "one past a tile everywhere"),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Unit vectors, [rows, patches, width] and [sentences, width], and the row of each sentence, int64 [sentences]."""

    patches: Tensor
    sentences: Tensor
    owner: Tensor


def draw(case: Case, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Drawn:
    source = torch.Generator().manual_seed(seed)
    patches = torch.randn(case.rows, case.patches, case.width, generator=source, dtype=torch.float64)
    sentences = torch.randn(case.sentences, case.width, generator=source, dtype=torch.float64)
    owner = torch.randint(0, case.rows, (case.sentences,), generator=source)
    return Drawn(normalize(patches, dim=2).to(dtype), normalize(sentences, dim=1).to(dtype), owner)
