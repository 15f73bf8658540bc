"""Batches larger than memory: representations are cached, the encoders run again for their gradients.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache). The loss sees
all rows at once; activations are those of one part at a time. Exact: the chain rule, with the embeddings in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from emocap_pretrain.batch import Batch, Tokens
from emocap_pretrain.encoders.pair import Embeddings

Encode = Callable[[int, Batch], Embeddings]


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch, and where they and their sentences stand in it."""

    batch: Batch
    rows: slice
    sentences: slice


@dataclass(frozen=True, slots=True)
class Cached:
    """The embeddings of all rows, as leaves of a graph that holds nothing else."""

    embeddings: Embeddings
    parts: tuple[Part, ...]
    encode: Encode

    @classmethod
    def of(cls, batch: Batch, passes: int, encode: Encode) -> "Cached":
        """Encode part by part without a graph.

        Args:
            batch: This rank's rows; there may be fewer than passes.
            passes: How many parts; equal on all ranks, for each runs collectives of its own at stage 3.
            encode: Of the number of a pass and its rows. For the same number it draws the same random numbers.
        """
        parts = tuple(_parts(batch, passes))
        with torch.no_grad():
            found = [encode(number, part.batch) for number, part in enumerate(parts)]
        rows = [torch.cat(each) for each in zip(*(each[:-2] for each in found), strict=True)]
        return cls(Embeddings(*(each.requires_grad_() for each in (*rows, *found[0][-2:]))), parts, encode)

    def surrogates(self) -> Iterator[Tensor]:
        """After the loss's backward pass: scalars whose gradients add up to those of the loss, one for each part.

        Differentiate each before the next is asked for.
        """
        for number, part in enumerate(self.parts):
            encoded = self.encode(number, part.batch)
            yield torch.stack([(each * grad).sum() for each, grad in self._pairs(encoded, part, number == 0)]).sum()

    def _pairs(self, encoded: Embeddings, part: Part, first: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """What the pass gave with the gradients of it; terms that are switched off have none."""
        for name, again, leaf in zip(Embeddings._fields, encoded, self.embeddings, strict=True):
            if leaf.grad is None:
                continue
            if name in {"scale", "local_scale"}:  # Of no part: the first pass carries its gradient, the others a zero.
                yield again, leaf.grad if first else torch.zeros_like(leaf.grad)
            else:
                yield again, leaf.grad[part.sentences if name == "sentences" else part.rows]


def _parts(batch: Batch, passes: int) -> Iterator[Part]:
    edges = torch.arange(passes + 1) * batch.rows // passes
    # The owners ascend, so the sentences of neighbouring rows are neighbours.
    marks = torch.searchsorted(batch.owner, edges.to(batch.owner.device)).tolist()
    for number, (first, last) in enumerate(zip(edges.tolist(), edges.tolist()[1:], strict=False)):
        rows, sentences = slice(first, last), slice(*marks[number : number + 2])
        yield Part(_some(batch, rows, sentences), rows, sentences)


def _some(batch: Batch, rows: slice, sentences: slice) -> Batch:
    def cut(name: str) -> Tensor | Tokens:
        value, span = getattr(batch, name), sentences if name in {"sentences", "owner"} else rows
        return Tokens(value.ids[span], value.mask[span]) if isinstance(value, Tokens) else value[span]

    values = {field.name: cut(field.name) for field in fields(Batch)}
    values["owner"] = batch.owner[sentences] - rows.start
    return Batch(**values)  # pyright: ignore[reportArgumentType]
