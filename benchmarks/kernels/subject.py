"""The subject of a run: one of our losses, its batches, and all implementations that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .size import Size
from .variants import PASSES, Pass, Variant

# The names of our contenders, the fastest first.
OURS = ("fused", "chunked")


class Batch(Protocol):
    """The input of every contender."""

    @property
    def device(self) -> torch.device: ...

    def leaves(self, variant: Variant) -> list[Tensor]:
        """Returns the inputs that get a gradient in `variant`: those of images, those of texts, then numbers."""
        ...

    def to(self, dtype: torch.dtype) -> Batch:
        """Returns the same numbers as new leaves of another type."""
        ...


# A function of the batch of its subject.
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class Contender:
    """An implementation of a loss.

    Attributes:
        name: Name of the implementation; unique together with the variant.
        variant: What is computed.
        build: Returns the loss; called once for every size.
        package: The distribution whose version matters; None for torch and ours.
        needs_cuda: Whether it cannot run on a CPU.
        dense: Returns the bytes of the whole matrices that it holds at a size; None if it holds none.
        compiles: Whether its first call at a size needs more memory than the others.
        passes: The passes that it has.
    """

    name: str
    variant: Variant
    build: Callable[[], Loss]
    package: str | None = None
    needs_cuda: bool = False
    dense: Callable[[Size], float] | None = None
    compiles: bool = False
    passes: tuple[Pass, ...] = PASSES

    @property
    def ours(self) -> bool:
        return self.name in OURS


def compiled(loss: Loss) -> Loss:
    """Returns the compiled `loss` for one size. Without the reset, the compiler gives up after eight sizes."""
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, dynamic=False)


@dataclass(frozen=True, slots=True)
class Exact:
    """A loss in float64, and the gradients of some of the images and some of the texts.

    Attributes:
        loss: 0-dim.
        images: int64 [images], their indices.
        image_gradient: [images, ...].
        texts: int64 [texts], their indices.
        text_gradient: [texts, width].
    """

    loss: Tensor
    images: Tensor
    image_gradient: Tensor
    texts: Tensor
    text_gradient: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One of our losses, and everything that is needed to compare others with it.

    Attributes:
        name: Name on the command line.
        what: Name in the records.
        records: Name of the file of the records, without its suffix.
        variants: What is computed; the first one is the plain loss.
        roster: Returns all contenders, ours first.
        draw: Returns a batch of a size, a type and a device.
        small: Returns the size, for a width, at which all contenders are compared with float64.
        reference: Returns our reference for a variant. It raises an UnableError if we have no such loss.
        floor_flops: Returns the fewest operations of a variant in a pass at a size.
        exact: Returns the plain loss of a batch in float64 at any size, and the gradients of some rows.
    """

    name: str
    what: str
    records: str
    variants: Sequence[Variant]
    roster: Callable[[], tuple[Contender, ...]]
    draw: Callable[[Size, torch.dtype, torch.device], Batch]
    small: Callable[[int], Size]
    reference: Callable[[Variant], Loss]
    floor_flops: Callable[[Variant, Pass, Size], float]
    exact: Callable[[Any, int], Exact]


def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of another type that is a leaf and needs a gradient."""
    return tensor.detach().to(dtype).requires_grad_()


def sample(number: int, count: int, device: torch.device) -> Tensor:
    """Returns at most `count` indices below `number`, int64, always the same ones."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(0))[:count].to(device)
