"""Batches larger than memory: representations are cached, and the towers run again for their gradients.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache). The loss sees
all rows at once; activations are those of one pass at a time. Exact: the chain rule, with the embeddings in between.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emocap_pretrain.data.batch import Batch
from emocap_pretrain.model.pair import Embeddings

Encode = Callable[[int, Batch], Embeddings]


@dataclass(frozen=True, slots=True)
class Pass:
    """Some rows of a batch, and where they and their texts lie in it."""

    batch: Batch
    rows: slice
    texts: Mapping[str, slice]


@dataclass(frozen=True, slots=True)
class Cached:
    """The embeddings of all rows, as leaves of a graph that holds nothing else."""

    embeddings: Embeddings
    passes: tuple[Pass, ...]
    encode: Encode

    @classmethod
    def of(cls, batch: Batch, passes: int, encode: Encode) -> "Cached":
        """Encodes pass after pass without a graph.

        Args:
            batch: This rank's rows; there may be fewer than passes.
            passes: How many; equal on all ranks, because each pass runs collectives of its own at ZeRO stage 3.
            encode: `encode(number, batch)` must be deterministic in the number of the pass, so that the second run
                draws the same dropout masks.
        """
        cut = tuple(_passes(batch, passes))
        with torch.no_grad():
            found = [encode(number, each.batch) for number, each in enumerate(cut)]
        return cls(_leaves(found), cut, encode)

    def surrogates(self) -> Iterator[Tensor]:
        """Yields, after the loss's backward pass, one scalar for each pass; their gradients add up to the loss's.

        Differentiate each before the next is asked for.
        """
        for number, each in enumerate(self.passes):
            encoded = self.encode(number, each.batch)
            pairs = self._with_gradients(encoded, each, first=number == 0)
            yield torch.stack([(again * gradient).sum() for again, gradient in pairs]).sum()

    def _with_gradients(self, encoded: Embeddings, cut: Pass, *, first: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what a pass gave with its gradients; what no term reads has none."""
        leaves = self.embeddings
        for again, leaf in ((encoded.image, leaves.image), (encoded.patches, leaves.patches)):
            if leaf.grad is not None:
                yield again, leaf.grad[cut.rows]
        for name, leaf in leaves.texts.items():
            if leaf.grad is not None:
                yield encoded.texts[name], leaf.grad[cut.texts[name]]
        for numbers, learned in ((encoded.scales, leaves.scales), (encoded.biases, leaves.biases)):
            for name, leaf in learned.items():
                if leaf.grad is not None:  # It belongs to no rows: the first pass carries its gradient.
                    yield numbers[name], leaf.grad if first else torch.zeros_like(leaf.grad)


def _leaves(found: list[Embeddings]) -> Embeddings:
    """Returns the embeddings of all passes in one, as leaves."""

    def joined(pieces: Iterator[Tensor]) -> Tensor:
        return torch.cat(list(pieces)).requires_grad_()

    return Embeddings(
        image=joined(each.image for each in found),
        patches=joined(each.patches for each in found),
        texts={name: joined(each.texts[name] for each in found) for name in found[0].texts},
        scales={name: scale.requires_grad_() for name, scale in found[0].scales.items()},
        biases={name: bias.requires_grad_() for name, bias in found[0].biases.items()},
    )


def _passes(batch: Batch, passes: int) -> Iterator[Pass]:
    edges = [number * batch.rows // passes for number in range(passes + 1)]
    cuts = {name: texts.starts(edges) for name, texts in batch.texts.items()}
    for number, (first, last) in enumerate(pairwise(edges)):
        spans = {name: slice(*starts[number : number + 2]) for name, starts in cuts.items()}
        texts = {name: each.piece(spans[name], first) for name, each in batch.texts.items()}
        yield Pass(Batch(batch.images[first:last], texts), slice(first, last), spans)
