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
from emocap_kernels.products import HALVES, add_product_, product


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
        needs_image, needs_text, self.needs_scale, self.needs_bias = needs
        self.image = torch.zeros_like(image, dtype=wide) if needs_image else None
        self.text = torch.zeros_like(text, dtype=wide) if needs_text else None
        self.scale = torch.zeros((), dtype=torch.float64, device=image.device)
        self.bias = torch.zeros((), dtype=torch.float64, device=image.device)

    def add(self, gradient: Tensor, rows: slice, columns: slice) -> None:
        """Carries the gradient of a chunk of scores, [rows, columns], into both sides."""
        if self.image is not None:
            add_product_(self.image[rows], gradient, self._text[columns])
        if self.text is not None:
            add_product_(self.text[columns], gradient.T, self._image[rows])

    def add_numbers(self, gradient: Tensor, rows: slice) -> None:
        """Carries the gradient of all scores of `rows` into scale and bias; comes after `add`.

        The image gradient knows the scale's already, unless it is made of halves: those round away a sum in which
        almost everything cancels, so the cosines are made again.
        """
        if self.needs_bias:
            self.bias += gradient.sum()
        if not self.needs_scale:
            return
        if self.image is not None and self._image.dtype not in HALVES:
            self.scale += (self.image[rows] * self._image[rows]).sum()
        else:
            cosine = product(self._image[rows], self._text.T)
            self.scale += cosine.mul_(gradient).sum(1).double().sum()

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of image and text in their own types; uses the sums up."""
        image = None if self.image is None else self.image.mul_(factor).to(self._image.dtype)
        text = None if self.text is None else self.text.mul_(factor).to(self._text.dtype)
        return image, text
