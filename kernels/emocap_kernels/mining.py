"""Which pairs count as positives beyond the known ones, and how the most similar are chosen."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from emocap_kernels.errors import ArgumentError

Guide = Literal["counterpart", "text", "image", "consensus", "joint"]
Treatment = Literal["attract", "ignore"]


@dataclass(frozen=True, slots=True)
class Mining:
    """A rule that turns similarities into mined positives; with both rules given, a pair must satisfy both.

    Attributes:
        guide: Whose similarity decides (docs/method.md has the table). The local loss always reads the text.
        threshold: Mined if the cosine is at least this; in [-1, 1].
        top_k: Mined if among this many most similar candidates of the anchor, itself not counted.
        treatment: `attract` makes mined pairs positives; `ignore` takes them out of the denominator as well.
    """

    guide: Guide = "counterpart"
    threshold: float | None = None
    top_k: int | None = None
    treatment: Treatment = "attract"

    def __post_init__(self) -> None:
        _one_of("guide", self.guide, get_args(Guide))
        _one_of("treatment", self.treatment, get_args(Treatment))
        if self.threshold is None and self.top_k is None:
            raise ArgumentError("Mining has no rule; give threshold, top_k or both, or pass mining=None.")
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ArgumentError(f"threshold={self.threshold} is no cosine; it must lie in [-1, 1].")
        if self.top_k is not None and type(self.top_k) is not int:
            raise ArgumentError(f"top_k={self.top_k} is no whole number.")
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(f"top_k={self.top_k} mines nothing; it must be at least 1.")

    @property
    def attracts(self) -> bool:
        """Whether mined pairs become positives; otherwise they take no part."""
        return self.treatment == "attract"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name}={value!r} is unknown; it must be one of {', '.join(allowed)}.")


def nearest(similarity: Tensor, own: Tensor, top_k: int) -> Tensor:
    """Indices of the `top_k` largest of each row, its own column not counted; the lower index wins a tie.

    `torch.topk` breaks ties as it likes, so only its k-th value is used, and rows with a tie there are settled by
    counting from the left.

    Args:
        similarity: [rows, columns]; overwritten.
        own: int64 [rows], the column that is no candidate of this row.
        top_k: At least 1; with fewer candidates all of them are taken.

    Returns:
        int64 [rows, min(top_k, columns - 1)], ascending in each row.
    """
    rows, columns = similarity.shape
    taken = min(top_k, columns - 1)
    if rows == 0 or taken <= 0:
        return own.new_empty(rows, 0)
    # A NaN must not look like the nearest neighbour, nor change the number that is chosen.
    similarity.nan_to_num_(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    similarity.scatter_(1, own[:, None], float("-inf"))
    last = similarity.topk(taken, dim=1, sorted=False).values.amin(1, keepdim=True)
    chosen = similarity >= last
    tied = (chosen.sum(1) > taken).nonzero()[:, 0]
    if len(tied):
        chosen[tied] = _first_of_ties(similarity[tied], last[tied], taken)
    return chosen.nonzero()[:, 1].view(rows, taken)


def _first_of_ties(similarity: Tensor, last: Tensor, taken: int) -> Tensor:
    above = similarity > last
    level = similarity == last
    room = taken - above.sum(1, keepdim=True)
    return above | (level & (level.cumsum(1) <= room))


def first_twins(features: Tensor) -> Tensor | None:
    """The lowest index that holds the same vector, int64 [rows], or None if no two of [rows, width] are equal.

    A matrix product may round equal columns differently (it does on CPU), which would decide ties by position in a
    tile. Reading the similarity of a vector's first twin makes equal vectors equal again.
    """
    keys = _hashes(features)
    _, group = torch.unique(keys, return_inverse=True)
    index = torch.arange(len(features), device=features.device)
    first = index.new_full((len(features),), len(features)).scatter_reduce(0, group, index, "amin")[group]
    first = torch.where((features == features[first]).all(1), first, index)
    return first if bool((first != index).any()) else None


def _hashes(features: Tensor) -> Tensor:
    """int64 [rows]; equal vectors have equal hashes, and unequal ones collide only by rare chance."""
    words = (features.contiguous() + 0.0).view(torch.uint8).view(len(features), -1)
    if words.shape[1] % 8:
        words = torch.nn.functional.pad(words, (0, 8 - words.shape[1] % 8))
    numbers = words.contiguous().view(torch.int64)
    # An odd multiplier for each position; int64 products and sums wrap, which is what a hash wants.
    weights = torch.arange(1, numbers.shape[1] + 1, device=features.device) * 0x9E3779B97F4A7C1 + 0x7F4A7C15
    mixed = (numbers ^ (numbers >> 29)) * (weights | 1)
    return (mixed ^ (mixed >> 31)).sum(1)
