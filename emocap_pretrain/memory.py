"""How much memory a rank needs, found without allocating it: the towers run on fake tensors.

Activations are not guessed by a formula: both passes are traced at the real batch size with tensors that have a shape
and no bytes, and the storages that are alive at the same time are added up.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from emocap_kernels.blocks import BLOCK_BYTES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from emocap_pretrain.batch import Batch, Tokens
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config, PartLengths
from emocap_pretrain.encoders.pair import Embeddings, TowerPair
from emocap_pretrain.engine.zero import BUCKET
from emocap_pretrain.tokenizer import Tokenizer, Vocabulary

SENTENCES_EACH = 5
FLOAT = 4
LOSS_BLOCKS = 4  # Similarities, their exponentials, and the gradients of both.


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one rank's device at the peak of a step, the framework's own overhead not counted.

    Attributes:
        activations: The most that is alive at a time in forward pass, loss and backward pass.
        patches: Of one image, as the local loss sees them.
        row_flops: Of both towers for one row, forward and backward; products within attention are not counted.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    patches: int
    row_flops: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations

    def lines(self) -> list[tuple[str, str]]:
        parts = ("weights", "gradients", "optimizer", "buffers", "activations")
        listed = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        return [
            ("parameters", f"{self.parameters / 1e6:.1f} M"),
            ("memory", f"{self.total / 2**30:.2f} GiB on each rank's device, beside the framework's own"),
            ("", f"GiB: {listed}"),
        ]


def estimate(config: Config, ranks: int, *, shortest: bool = False) -> MemoryEstimate:
    """Trace one step of a rank.

    Args:
        config: The run.
        ranks: How many there are.
        shortest: Captions of the shortest length without local sentences, for a lower bound; else captions of the
            longest length with five local sentences each, for an upper one.
    """
    captions = _captions(config, shortest=shortest)
    split = batch_split(config, ranks)
    rows = split.micro_batch
    with torch.device("meta"):
        model = TowerPair(config, _vocabulary(config), weights=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        traced = _traced(model, config, rows, captions)
        row_flops = _flops(model, _batch(config, 1, captions))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stage, size = config.engine.zero_stage, parameters * FLOAT
    return MemoryEstimate(
        parameters=parameters,
        weights=size // (ranks if stage == 3 else 1),
        # With several passes the sum of their gradients is held in whole until it is reduced, once.
        gradients=size // (ranks if stage >= 2 and split.passes == 1 else 1),
        # Two moments; with ZeRO also the rank's own copy of the weights that it updates.
        optimizer=2 * size if stage == 0 else 3 * size // ranks,
        buffers=0 if stage == 0 else min(BUCKET * FLOAT, size),
        activations=traced.activations,
        patches=traced.patches,
        row_flops=row_flops,
    )


def _vocabulary(config: Config) -> Vocabulary:
    text = config.model.text
    return Vocabulary(text.vocabulary, 0) if text.tokenizer == "data" else Tokenizer.load(text.tokenizer).vocabulary


class _Trace(NamedTuple):
    activations: int
    patches: int


class _Captions(NamedTuple):
    """How long the parts of every caption are, and how many local sentences it has."""

    lengths: PartLengths
    sentences: int


def _captions(config: Config, *, shortest: bool) -> _Captions:
    if shortest:
        return _Captions(PartLengths.model_validate({"global": 3, "local": 3, "summary": 3}), 0)
    return _Captions(config.model.text.lengths, SENTENCES_EACH if config.objective.local else 0)


def _traced(model: TowerPair, config: Config, rows: int, captions: _Captions) -> _Trace:
    """Bytes at the peak of both passes and of the loss between them; a weight's gradient goes at once."""
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(_forget_gradient)
    with _LiveStorages(model.state_dict().values()) as live:
        embeddings = model(_batch(config, rows, captions))
        at_loss = live.bytes + _loss_bytes(config, embeddings, config.global_batch * captions.sentences)
        torch.stack([each.sum() for each in embeddings]).sum().backward()
    return _Trace(max(live.peak_bytes, at_loss), embeddings.patches.shape[1])


def _flops(model: TowerPair, batch: Batch) -> int:
    """Of both passes; counted apart from memory, because the counter keeps tensors alive."""
    with FlopCounterMode(display=False) as counter:
        torch.stack([each.sum() for each in model(batch)]).sum().backward()
    return counter.get_total_flops()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of what operators make, for as long as it lives; views of `there` are not made."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._known = weakref.WeakSet[Any](each.untyped_storage() for each in there)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        self._grow(storage.nbytes())
        weakref.finalize(storage, self._grow, -storage.nbytes())

    def _grow(self, by: int) -> None:
        self.bytes += by
        self.peak_bytes = max(self.peak_bytes, self.bytes)


def _batch(config: Config, rows: int, captions: _Captions) -> Batch:
    """A batch whose texts all have the full length."""
    pixels, lengths, sentences = config.model.image.pixels, captions.lengths, rows * captions.sentences
    return Batch(
        images=torch.zeros((rows, 3, pixels, pixels), dtype=torch.uint8),
        whole=_full(rows, lengths.whole),
        summary=_full(rows if config.objective.summary else 0, lengths.summary),
        sentences=_full(sentences, lengths.local),
        owner=torch.zeros(sentences, dtype=torch.int64),
        whole_ids=torch.zeros(rows, dtype=torch.int64),
        summary_ids=torch.zeros(rows, dtype=torch.int64),
    )


def _full(texts: int, length: int) -> Tokens:
    return Tokens(torch.zeros((texts, length), dtype=torch.int64), torch.ones((texts, length), dtype=torch.bool))


def _loss_bytes(config: Config, embeddings: Embeddings, sentences: int) -> int:
    """Gradients of the embeddings, the gathered texts with theirs, and the largest block of similarities.

    `sentences` is the number of local sentences of the global batch.
    """
    own = sum(each.numel() for each in embeddings)
    gathered = (2 * config.global_batch + sentences) * config.model.embedding
    rows, patches, _ = embeddings.patches.shape
    block = min(BLOCK_BYTES, FLOAT * rows * max(config.global_batch, patches * sentences))
    return FLOAT * (own + 2 * gathered) + LOSS_BLOCKS * block
