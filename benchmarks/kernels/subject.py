"""The subject of a run: a loss of ours, how large batches are, and all who compute it or something beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .size import Size
from .variants import PASSES, Pass, Variant

# What contenders of ours are called, the fastest kind first.
OURS = ("fused", "chunked")


class Batch(Protocol):
    """The vectors that every contender is given."""

    @property
    def device(self) -> torch.device: ...

    def leaves(self, variant: Variant) -> list[Tensor]:
        """The inputs that `variant` has gradients for: those of images, those of texts, then numbers."""
        ...

    def to(self, dtype: torch.dtype) -> Batch:
        """The same numbers as new leaves of another type."""
        ...


# Takes the batch of its own subject.
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class Contender:
    """A loss that somebody computes.

    Attributes:
        name: Who; together with the variant it is unique.
        variant: What is computed.
        build: Gives the loss anew; called once for every size.
        package: The distribution whose version matters; None for torch and ours.
        needs_cuda: Whether it cannot run on a CPU.
        dense: Bytes of the whole matrices that it holds at a size; None if it holds none.
        compiles: Whether its first call at a size costs more memory than the others.
        passes: Those that it has.
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
    """`loss` for one size: without the reset, the compiler gives up after eight sizes."""
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, dynamic=False)


@dataclass(frozen=True, slots=True)
class Exact:
    """A loss in float64, and its gradients in some of the images and some of the texts.

    Attributes:
        loss: 0-dim.
        images: int64 [images], which ones.
        image_gradient: [images, ...].
        texts: int64 [texts], which ones.
        text_gradient: [texts, width].
    """

    loss: Tensor
    images: Tensor
    image_gradient: Tensor
    texts: Tensor
    text_gradient: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A loss of ours and everything that is needed to measure others beside it.

    Attributes:
        name: On the command line.
        what: In the records.
        records: The file of the records, without its ending.
        variants: What is computed; the first is the plain loss.
        roster: Everybody; ours first.
        draw: Gives a batch of a size, a type and a device.
        small: The size, for a width, at which everybody is compared with float64.
        reference: Our plainest code for a variant; what it gives raises where ours has no such loss.
        floor_flops: The fewest operations of a variant in a pass at a size.
        exact: The plain loss of a batch in float64 at any size, and gradients in some rows, their number given.
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
    return tensor.detach().to(dtype).requires_grad_()


def sample(number: int, count: int, device: torch.device) -> Tensor:
    """int64 [at most `count`]: indices below `number`, always the same ones."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(0))[:count].to(device)
