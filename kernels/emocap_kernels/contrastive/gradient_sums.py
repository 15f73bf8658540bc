"""What gradients of scores add up to in the inputs, for every backend that makes the scores piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from emocap_kernels.blocks import even_blocks
from emocap_kernels.contrastive.problem import Block, Problem
from emocap_kernels.distributed.columns import Sums
from emocap_kernels.products import HALVES, add_product_, product

# Rows of which the products with their gradients are held at once.
ROWS = 4096


class GradientSums:
    """Of 2B times the loss, by the images of this rank: in image / scale, text / scale, scale and bias."""

    def __init__(self, problem: Problem, needs: Sequence[bool]) -> None:
        """`needs` says whether image, text, scale and bias want a gradient; of the text, on any rank."""
        self._problem, self._image = problem, problem.image
        needs_image, needs_text, self.needs_scale, self.needs_bias = needs
        wide = problem.scale.dtype
        self.image = torch.zeros_like(self._image, dtype=wide) if needs_image else None
        self.scale = torch.zeros((), dtype=torch.float64, device=self._image.device)
        self.bias = torch.zeros((), dtype=torch.float64, device=self._image.device)
        self._texts = Sums(
            problem.columns, self._image.new_empty(0, self._image.shape[1], dtype=wide), problem.text.dtype
        )
        self._needs_text = needs_text
        self._block: Block | None = None
        self._part: Tensor | None = None

    def blocks(self) -> Iterator[Block]:
        """The blocks of the problem; what is added while one is current goes to its texts."""
        for block in self._problem.blocks(self._texts if self._needs_text else None):
            self._block = block
            self._part = torch.zeros_like(block.text, dtype=self._problem.scale.dtype) if self._needs_text else None
            yield block
            if self._part is not None:
                self._texts.add(block.columns, self._part)

    def add(self, gradient: Tensor, rows: slice, columns: slice) -> None:
        """Carries the gradient of a chunk of scores, [rows, columns of the current block], into both sides."""
        assert self._block is not None
        if self.image is not None:
            add_product_(self.image[rows], gradient, self._block.text[columns])
        if self._part is not None:
            add_product_(self._part[columns], gradient.T, self._image[rows])

    def add_numbers(self, gradient: Tensor, rows: slice) -> None:
        """Carries the gradient of the scores of `rows` in all of the current block into scale and bias."""
        if self.needs_bias:
            self.bias += gradient.sum()
        if self.needs_scale and not self._scale_follows():
            assert self._block is not None
            cosine = product(self._image[rows], self._block.text.T)
            self.scale += cosine.mul_(gradient).sum(1).double().sum()

    def follow(self) -> None:
        """Takes the scale's gradient from that of the images; comes after the last `add_numbers`."""
        if self.image is not None and self.needs_scale and self._scale_follows():
            for rows in even_blocks(len(self._image), ROWS):
                self.scale += (self.image[rows] * self._image[rows]).sum(1).double().sum()

    def text(self) -> Tensor | None:
        """Of the texts of this rank, summed over ranks."""
        return self._texts.own() if self._needs_text else None

    def finished(self, factor: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of image and text in their own types; uses the sums up."""
        text = self.text()
        image = None if self.image is None else self.image.mul_(factor).to(self._image.dtype)
        return image, None if text is None else text.mul_(factor).to(self._problem.text.dtype)

    def _scale_follows(self) -> bool:
        """The image gradient knows the scale's, unless it is made of halves: those round away what nearly cancels."""
        return self.image is not None and self._image.dtype not in HALVES
