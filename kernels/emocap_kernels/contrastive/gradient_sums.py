"""What gradients of scores add up to in the inputs, for every backend that makes the scores piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emocap_kernels.products import HALVES, add_product_, product


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
