"""Trains on batches whose activations do not fit into memory: representations are cached, and the towers run twice.

The method is GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").
The rows of a rank are divided into passes, and the towers encode one pass at a time. The loss is computed from the
embeddings of all rows, while memory holds the activations of one pass only. The gradients are exact: the chain rule is
applied first to the loss and then to each pass.

In formulas: let w be the weights, e the embeddings of all rows, e_p those of pass p, and L the loss. The first run of
the towers computes e without a graph. L(e).backward() stores g = dL/de in the `grad` of the embeddings, which are
leaves of the graph. The second run encodes each pass p again and backpropagates the scalar sum(e_p * g_p), where g_p,
the part of g for pass p, is a constant. The gradient of this scalar is (de_p/dw)^T g_p. The sum of these gradients over
p is dL/dw.
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
    """Holds the rows of a batch that the towers encode in one pass, and where they are in the batch.

    `rows` is their slice of the images, and `texts` holds, for each caption part, the slice of the part's texts.
    """

    batch: Batch
    rows: slice
    texts: Mapping[str, slice]


@dataclass(frozen=True, slots=True)
class Cached:
    """Holds the embeddings of all rows, as leaves of the autograd graph, and the passes in which they are encoded.

    Each pass encodes some of the rows, so memory holds the activations of one pass only.

    Example:
        cached = Cached.of(batch, passes=4, encode=encode)
        loss_of(cached.embeddings).backward()  # Reaches the leaves only.
        for surrogate in cached.surrogates():
            surrogate.backward()  # Adds the part of one pass to the gradients of the parameters.
    """

    embeddings: Embeddings
    passes: tuple[Pass, ...]
    encode: Encode

    @classmethod
    def of(cls, batch: Batch, passes: int, encode: Encode) -> "Cached":
        """Encodes the batch in several passes, without a graph.

        Args:
            batch: This rank's rows; there may be fewer rows than passes.
            passes: Number of passes, equal on all ranks, because each pass runs collectives under ZeRO stage 3.
            encode: Called as `encode(number, batch)` with the index of the pass and its rows, twice for each pass. For
                the same index it must draw the same random numbers, so that both calls have the same dropout masks.
        """
        cut = tuple(_passes(batch, passes))
        with torch.no_grad():
            found = [encode(number, each.batch) for number, each in enumerate(cut)]
        return cls(_leaves(found), cut, encode)

    def surrogates(self) -> Iterator[Tensor]:
        """Yields one scalar (surrogate) for each pass. The gradients of all scalars add up to the gradient of the loss.

        The caller must run the backward pass of the loss before it takes the first scalar, and the backward pass of
        each scalar before it takes the next one.
        """
        # It is a generator, so the graph of a pass is freed before the next pass is encoded.
        for number, each in enumerate(self.passes):
            encoded = self.encode(number, each.batch)
            pairs = self._with_gradients(encoded, each, first=number == 0)
            yield torch.stack([(again * gradient).sum() for again, gradient in pairs]).sum()

    def _with_gradients(self, encoded: Embeddings, cut: Pass, *, first: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each tensor in `encoded` with the gradient of the loss with respect to this tensor.

        `encoded` holds the embeddings of one pass, and `cut` the rows and texts of this pass. Tensors that no term of
        the objective uses have no gradient and are left out. The gradient of a scale or a bias must count once, so it
        is replaced by zero unless `first` says that this is the first pass.
        """
        leaves = self.embeddings
        # Images, patches and outputs are cut by rows. A row may have several texts, so texts have a slice of their own.
        outputs = ((encoded.outputs[name], leaf) for name, leaf in leaves.outputs.items())
        for again, leaf in ((encoded.image, leaves.image), (encoded.patches, leaves.patches), *outputs):
            if leaf.grad is not None:
                yield again, leaf.grad[cut.rows]
        for name, leaf in leaves.texts.items():
            if leaf.grad is not None:
                yield encoded.texts[name], leaf.grad[cut.texts[name]]
        for numbers, learned in ((encoded.scales, leaves.scales), (encoded.biases, leaves.biases)):
            for name, leaf in learned.items():
                if leaf.grad is not None:  # A scale belongs to no rows, so its gradient counts in the first pass only.
                    yield numbers[name], leaf.grad if first else torch.zeros_like(leaf.grad)


def _leaves(found: list[Embeddings]) -> Embeddings:
    """Concatenates the embeddings of all passes, and makes the results leaves of the autograd graph."""

    def joined(pieces: Iterator[Tensor]) -> Tensor:
        return torch.cat(list(pieces)).requires_grad_()

    return Embeddings(
        image=joined(each.image for each in found),
        patches=joined(each.patches for each in found),
        texts={name: joined(each.texts[name] for each in found) for name in found[0].texts},
        scales={name: scale.requires_grad_() for name, scale in found[0].scales.items()},
        biases={name: bias.requires_grad_() for name, bias in found[0].biases.items()},
        outputs={name: joined(each.outputs[name] for each in found) for name in found[0].outputs},
    )


def _passes(batch: Batch, passes: int) -> Iterator[Pass]:
    # Passes differ by one row at most. With fewer rows than passes, some passes are empty, and still run.
    edges = [number * batch.rows // passes for number in range(passes + 1)]
    cuts = {name: texts.starts(edges) for name, texts in batch.texts.items()}
    for number, (first, last) in enumerate(pairwise(edges)):
        spans = {name: slice(*starts[number : number + 2]) for name, starts in cuts.items()}
        texts = {name: each.piece(spans[name], first) for name, each in batch.texts.items()}
        labels = {name: each[first:last] for name, each in batch.labels.items()}
        yield Pass(Batch(batch.images[first:last], texts, labels), slice(first, last), spans)
