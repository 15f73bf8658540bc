"""How the chunked backend walks over the score matrix, and what it adds up on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emocap_kernels.blocks import block_bytes_on, even_blocks
from emocap_kernels.contrastive.pairs import Pairs, pairs_of
from emocap_kernels.contrastive.problem import Problem
from emocap_kernels.distributed import Ranks, Span
from emocap_kernels.products import add_product_


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


class GradientSums:
    """Of 2B times the loss, by the images of this rank: in image / scale, text / scale, scale and bias."""

    def __init__(self, image: Tensor, text: Tensor, needs: Sequence[bool]) -> None:
        self._image, self._text = image, text
        wide = torch.promote_types(image.dtype, torch.float32)
        needs_image, needs_text, needs_scale, self.needs_bias = needs
        self.image = torch.zeros_like(image, dtype=wide) if needs_image or needs_scale else None
        self.text = torch.zeros_like(text, dtype=wide) if needs_text else None
        self.scale = torch.zeros((), dtype=torch.float64, device=image.device)
        self.bias = torch.zeros((), dtype=torch.float64, device=image.device)

    def add(self, gradient: Tensor, rows: slice, columns: slice) -> None:
        """Carries the gradient of a chunk of scores, [rows, columns], into both sides."""
        if self.image is not None:
            add_product_(self.image[rows], gradient, self._text[columns])
        if self.text is not None:
            add_product_(self.text[columns], gradient.T, self._image[rows])

    def add_scale(self, rows: slice) -> None:
        """Once `rows` of the image gradient are complete: their inner products with the images."""
        if self.image is not None:
            self.scale += (self.image[rows] * self._image[rows]).sum()

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of image and text in their own types; uses the sums up."""
        image = None if self.image is None else self.image.mul_(factor).to(self._image.dtype)
        text = None if self.text is None else self.text.mul_(factor).to(self._text.dtype)
        return image, text

    def subtract_own(self, share: float, span: Span) -> None:
        """Takes `share` of each own pair off both sides."""
        if self.image is not None:
            self.image.sub_(self._text[span.own], alpha=share)
        if self.text is not None:
            self.text[span.own].sub_(self._image, alpha=share)
