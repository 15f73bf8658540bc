"""Defines `Mining`, the rule for additional positives, and selects the most similar candidates of an anchor.

The module `positives` applies the rule to the tiles of a loss. The functions of this module select candidates for the
backends `reference` and `chunked`. For `fused`, a kernel selects them (module `fused.nearest`). With every backend, of
equal similarities the lower index wins.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from emocap_kernels import checks
from emocap_kernels.errors import ArgumentError

Guide = Literal["counterpart", "text", "image", "consensus", "joint"]
Treatment = Literal["attract", "ignore"]


@dataclass(frozen=True, slots=True)
class Mining:
    """Defines a rule that finds additional positives by similarity.

    If `threshold` and `top_k` are both given, a pair must satisfy both. No gradient flows through the selection. For
    example, with `Mining(threshold=0.9)` a text is a positive of an image if its cosine with the image's own text is at
    least 0.9.

    Attributes:
        guide: Which features are compared; docs/method.md has a table of the values. The local loss always compares
            sentences.
        threshold: The least cosine of a mined pair, in [-1, 1]. It is not multiplied by the scale of the loss.
        top_k: Number of most similar candidates that are mined for each anchor, at least 1. The candidate of the
            anchor's own sample (in the local loss, the sentence itself) does not count.
        treatment: `attract` makes mined pairs positives. `ignore` excludes them from the loss, so that they are neither
            positives nor negatives.

    Raises:
        ArgumentError: If neither `threshold` nor `top_k` is given, or if a value is not allowed.

    Example:
        ```python
        Mining(threshold=0.9)  # further positives
        Mining("text", top_k=4, treatment="ignore")  # the 4 samples with the most similar texts are not negatives
        ```
    """

    guide: Guide = "counterpart"
    threshold: float | None = None
    top_k: int | None = None
    treatment: Treatment = "attract"

    def __post_init__(self) -> None:
        checks.check_choice("guide", self.guide, get_args(Guide))
        checks.check_choice("treatment", self.treatment, get_args(Treatment))
        if self.threshold is None and self.top_k is None:
            raise ArgumentError("Mining has no rule; give threshold, top_k or both, or pass mining=None.")
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ArgumentError(f"threshold={self.threshold} must be a cosine, in [-1, 1].")
        # `isinstance` would accept True.
        if self.top_k is not None and type(self.top_k) is not int:
            raise ArgumentError(f"top_k={self.top_k} must be a whole number of at least 1.")
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(f"top_k={self.top_k} mines nothing; it must be at least 1.")

    @property
    def attracts(self) -> bool:
        """Returns True if mined pairs become positives, and False if they are ignored."""
        return self.treatment == "attract"


def top_k_pairs(similarity: Tensor, top_k: int) -> Tensor:
    """Returns a bool mask of the shape of `similarity` that is True at the `top_k` most similar columns of each row.

    Of equal similarities the lower index wins. Entries of the diagonal, where anchor and candidate belong to the same
    sample or are the same sentence, are never selected. Only the backend `reference` uses this function.
    """
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    # A stable sort keeps equal similarities in the order of their index.
    order = similarity.masked_fill(itself, float("-inf")).sort(stable=True, dim=1, descending=True).indices
    # If `top_k` is at least the number of columns, the own pair is among the first ones as well.
    return torch.zeros_like(itself).scatter_(1, order[:, :top_k], True) & ~itself


def top_k_indices(similarity: Tensor, own: Tensor, top_k: int) -> Tensor:
    """Returns the `top_k` most similar candidates of each anchor. Of equal similarities, the lower index wins.

    `torch.topk` orders equal similarities arbitrarily. Therefore only the k-th largest value is taken from its result.
    If several candidates of an anchor have that value, those of lowest index are selected.

    The host waits for the device, because it reads which anchors have such ties. The kernels of `fused` do not make the
    host wait.

    Similarities of unit vectors are never NaN. For other vectors, the backends treat NaN differently: `reference` ranks
    it first, and `fused` does not select it. This function ranks the candidate `own` and all candidates with NaN last.
    They are selected only if an anchor has too few candidates besides them, those of lowest index first.

    Args:
        similarity: [anchors, candidates]; overwritten.
        own: int64 [anchors], the index of the candidate that belongs to the same sample as the anchor (or is the same
            sentence). It is not selected, unless a similarity is NaN.
        top_k: At least 1. If an anchor has fewer candidates besides `own`, all of them are returned.

    Returns:
        int64 [anchors, min(top_k, candidates - 1)], in ascending order in each row.
    """
    rows, columns = similarity.shape
    taken = min(top_k, columns - 1)
    if rows == 0 or taken <= 0:
        return own.new_empty(rows, 0)
    # `topk` would take NaN for the largest value, and the number of selected candidates would change.
    similarity.nan_to_num_(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    similarity.scatter_(1, own[:, None], float("-inf"))
    last = similarity.topk(taken, dim=1, sorted=False).values.amin(1, keepdim=True)
    # Without a tie at the k-th largest value, exactly `taken` candidates of the row reach it.
    selected = similarity >= last
    tied = (selected.sum(1) > taken).nonzero()[:, 0]
    if len(tied):
        selected[tied] = _first_of_ties(similarity[tied], last[tied], taken)
    # Each row has `taken` candidates now, and `nonzero` lists them row by row in ascending order.
    return selected.nonzero()[:, 1].view(rows, taken)


def _first_of_ties(similarity: Tensor, last: Tensor, taken: int) -> Tensor:
    above = similarity > last
    tied = similarity == last
    # How many of the tied candidates are selected: those of lowest index, because `cumsum` counts from the left.
    room = taken - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1) <= room))


def first_duplicates(features: Tensor) -> Tensor | None:
    """Returns for each row the lowest index of the rows equal to it, int64 [rows], or None if all rows differ.

    A row that equals no earlier row gets its own index. Equal rows are found by a hash, so in the rare case that the
    first row with the same hash is a different one, a duplicate also gets its own index.

    A matrix product may round equal columns differently, for example on a CPU. Callers therefore replace the similarity
    of each candidate by that of its first duplicate, so that equal candidates have equal similarities. The host waits
    for the device.

    Args:
        features: [rows, width].
    """
    # Rows of equal hashes form a group, and `first` is the lowest index of each row's group.
    keys = _hashes(features)
    _, group = torch.unique(keys, return_inverse=True)
    index = torch.arange(len(features), device=features.device)
    first = index.new_full((len(features),), len(features)).scatter_reduce(0, group, index, "amin")[group]
    # Rows of equal hashes are compared in full. A row that differs from the first of its group counts as unique.
    first = torch.where((features == features[first]).all(1), first, index)
    return first if bool((first != index).any()) else None


def _hashes(features: Tensor) -> Tensor:
    """Returns a hash of each row, int64 [rows]. Equal rows have equal hashes, and unequal rows rarely have."""
    # Adding 0.0 turns -0.0 into 0.0, which is equal but has other bytes.
    words = (features.contiguous() + 0.0).view(torch.uint8).view(len(features), -1)
    if words.shape[1] % 8:
        words = torch.nn.functional.pad(words, (0, 8 - words.shape[1] % 8))
    numbers = words.contiguous().view(torch.int64)
    # Each position has its own odd multiplier. int64 products and sums wrap around, as a hash needs.
    weights = torch.arange(1, numbers.shape[1] + 1, device=features.device) * 0x9E3779B97F4A7C1 + 0x7F4A7C15
    mixed = (numbers ^ (numbers >> 29)) * (weights | 1)
    return (mixed ^ (mixed >> 31)).sum(1)
