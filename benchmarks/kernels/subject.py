"""Defines what is measured: a loss in several variants, its batches, and its implementations (contenders).

The classes of this module hold such descriptions, and do not measure. `subjects` describes the global and the local
loss with these classes, and `batches` draws the inputs of the losses. `measure` and the other commands take the
descriptions as arguments. docs/glossary.md explains the terms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from emocap_kernels import Mining
from torch import Tensor

Pass = Literal["forward", "forward+backward"]
FORWARD: Pass = "forward"
BOTH: Pass = "forward+backward"
PASSES: tuple[Pass, ...] = (FORWARD, BOTH)
Backend = Literal["reference", "chunked", "fused"]
# The names of our contenders, the fastest first.
OURS: tuple[Backend, ...] = ("fused", "chunked")
Call = Callable[[], object]
# A loss is a function of a batch of its subject.
Loss = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a batch on one device.

    Attributes:
        rows: The number of images.
        width: The number of elements in a vector.
        patches: The number of patches of each image; None for a loss of whole images.
        sentences: The number of sentences of all images together; None for a loss of whole images.
    """

    rows: int
    width: int
    patches: int | None = None
    sentences: int | None = None

    @property
    def regions(self) -> tuple[int, int]:
        """The number of patches of an image, and the number of sentences of the batch.

        Raises:
            ValueError: If this is the size of a loss of whole images, which has no patches and sentences.
        """
        if self.patches is None or self.sentences is None:
            raise ValueError(f"{self} has no patches and sentences.")
        return self.patches, self.sentences

    @property
    def order(self) -> tuple[int, int, int, int]:
        """The key by which sizes are sorted."""
        return (self.width, self.rows, self.patches or 0, self.sentences or 0)


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of a loss: its objective, and how positives are mined.

    Attributes:
        name: The name in the records, unique among the variants of the loss.
        objective: The objective of the global loss.
        mining: How positives are mined; None without mining.
        function: A description of the computed function; None if `objective` and `mining` describe it.
    """

    name: str
    objective: Literal["infonce", "sigmoid"] = "infonce"
    mining: Mining | None = None
    function: str | None = None

    @property
    def mining_in_words(self) -> str | None:
        """A text for the records about how positives are mined; None without mining.

        It names the guide (the similarity by which they are mined), and the threshold, the number of candidates
        (`top_k`) or both.
        """
        if self.mining is None:
            return None
        rules = {"threshold": self.mining.threshold, "top_k": self.mining.top_k}
        return ", ".join([self.mining.guide, *(f"{name} {rule}" for name, rule in rules.items() if rule is not None)])


class Batch(Protocol):
    """The input of an implementation: a `PairBatch` for the global loss, or a `Regions` for the local loss."""

    @property
    def device(self) -> torch.device: ...

    @property
    def backend(self) -> str:
        """The backend (`reference`, `chunked` or `fused`) that our package chooses for this batch."""
        ...

    def loss(self, **settings: Any) -> Tensor:
        """Returns our loss of the batch; `settings` are passed to the loss function of `emocap_kernels`."""
        ...

    def leaves(self, variant: Variant) -> list[Tensor]:
        """Returns the inputs that get a gradient in `variant`, in this order.

        They are the images (or patches), the texts (or sentences), the scale, and for the sigmoid loss the bias.
        """
        ...

    def share(self, rows: slice) -> Self:
        """Returns the part of the batch that consists of these rows, for one of several processes."""
        ...

    def to(self, dtype: torch.dtype) -> Self:
        """Returns the batch with the same values in another dtype, as new leaves."""
        ...


@dataclass(frozen=True, slots=True)
class Contender:
    """An implementation of a loss.

    Attributes:
        name: The name of the implementation; unique together with the variant.
        variant: The variant that it computes.
        loss: The function that computes the loss of a batch.
        package: The package whose version is recorded, by its name in `pip list`; None for torch and ours.
        needs_cuda: Whether it cannot run on a CPU.
        dense: Takes a size, and returns the number of bytes of the large matrices that the implementation keeps as a
            whole, such as the matrix of all scores. It is None if the implementation keeps no such matrix.
        compiles: Whether the function is compiled with torch.compile. Its first call then needs more memory than the
            others.
        passes: The passes that it can compute: "forward" (the forward pass alone), "forward+backward", or both.
    """

    name: str
    variant: Variant
    loss: Loss
    package: str | None = None
    needs_cuda: bool = False
    dense: Callable[[Size], float] | None = None
    compiles: bool = False
    passes: tuple[Pass, ...] = PASSES

    def build(self) -> Loss:
        """Returns the loss for batches of one size, compiled if `compiles` is set.

        The caches of torch.compile are cleared before it compiles. Without this, torch.compile would compile a function
        for eight sizes, and raise an error for the ninth.
        """
        if not self.compiles:
            return self.loss
        torch.compiler.reset()
        return torch.compile(self.loss, fullgraph=True, dynamic=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One of our losses, with everything that is needed to compare other implementations with it.

    Attributes:
        name: The name on the command line.
        what: The measured quantity in the records.
        records: The name of the file of records, without its suffix. The names of figures begin with it as well.
        variants: The variants; the first one is the plain loss.
        contenders: All contenders, ours first.
        draw: Returns a batch of a size and a dtype, on a device.
        small: Takes a width, and returns a small size with this width. At this size the results of all contenders are
            compared with results in float64.
        ours: Returns our loss with a backend for a variant. The returned function raises an UnableError if our package
            does not compute this variant.
        floor_flops: Returns the fewest floating-point operations that a variant needs in a pass at a size.
    """

    name: str
    what: str
    records: str
    variants: Sequence[Variant]
    contenders: Sequence[Contender]
    draw: Callable[[Size, torch.dtype, torch.device], Batch]
    small: Callable[[int], Size]
    ours: Callable[[Backend, Variant], Loss]
    floor_flops: Callable[[Variant, Pass, Size], float]


def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a leaf of autograd with the same values in another dtype."""
    return tensor.detach().to(dtype).requires_grad_()


def forward(loss: Loss, batch: Batch) -> Tensor:
    """Returns the loss, computed without a graph of autograd."""
    with torch.no_grad():
        return loss(batch)


def forward_backward(loss: Loss, batch: Batch, variant: Variant) -> tuple[Tensor, ...]:
    """Returns the loss and the gradients of `batch.leaves`. The gradients are not accumulated in the leaves."""
    value = loss(batch)
    return (value.detach(), *torch.autograd.grad(value, batch.leaves(variant)))


def call_of(loss: Loss, batch: Batch, variant: Variant, pass_: Pass) -> Call:
    """Returns a function that computes a loss on a batch: forward, or forward and backward, as `pass_` says."""
    if pass_ == FORWARD:
        return lambda: forward(loss, batch)
    return lambda: forward_backward(loss, batch, variant)
