"""How much memory a rank needs, found without allocating it: the towers run on fake tensors.

Activations are not guessed by a formula: the forward pass is traced at the real batch size with tensors that have a
shape and no bytes, and what autograd would keep for backward is added up.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from emocap_pretrain.batch import Batch, Tokens
from emocap_pretrain.config.batch_split import micro_batch
from emocap_pretrain.config.schema import Config
from emocap_pretrain.encoders.pair import Embeddings, TowerPair
from emocap_pretrain.engine import BUCKET
from emocap_pretrain.tokenizer import Vocabulary

SENTENCES_EACH = 5
FLOAT = 4
LOSS_CHUNK = 64 * 2**20


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one rank's device at the peak of a step, the framework's own overhead not counted."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    loss: int
    recomputes: bool

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.loss

    def lines(self) -> list[tuple[str, str]]:
        parts = ("weights", "gradients", "optimizer", "buffers", "activations", "loss")
        # A recomputed block's activations stand beside what was kept, in the backward pass that is not traced.
        bound = "at least " if self.recomputes else ""
        listed = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        return [
            ("parameters", f"{self.parameters / 1e6:.1f} M"),
            ("memory", f"{bound}{self.total / 2**30:.2f} GiB on each rank's device, beside the framework's own"),
            ("", f"GiB: {listed}"),
        ]


def estimate(config: Config, ranks: int) -> MemoryEstimate:
    """Trace one step of a rank with captions of the longest length and five local sentences each."""
    rows = micro_batch(config, ranks)
    with torch.device("meta"):
        model = TowerPair(config, Vocabulary(config.model.text.vocabulary, 0), weights=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with _saved_bytes(model) as saved:
            embeddings = model(_longest_batch(config, rows))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stage, size = config.engine.zero_stage, parameters * FLOAT
    return MemoryEstimate(
        parameters=parameters,
        weights=size // (ranks if stage == 3 else 1),
        gradients=size // (ranks if stage >= 2 else 1),
        # Two moments; with ZeRO also the rank's own copy of the weights that it updates.
        optimizer=2 * size if stage == 0 else 3 * size // ranks,
        buffers=0 if stage == 0 else min(BUCKET * FLOAT, size),
        activations=saved[0],
        loss=_loss_bytes(config, embeddings),
        recomputes=config.model.checkpoint_activations,
    )


@contextmanager
def _saved_bytes(model: TowerPair) -> Generator[list[int]]:
    """Adds up, in a list of one number, the distinct storages that autograd keeps, parameters left out."""
    seen = {StorageWeakRef(parameter.untyped_storage()).cdata for parameter in model.parameters()}
    total = [0]
    alive: list[Tensor] = []  # A freed storage's address could come again.

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        identity = StorageWeakRef(storage).cdata
        if identity not in seen:
            seen.add(identity)
            alive.append(tensor)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def _longest_batch(config: Config, rows: int) -> Batch:
    model, lengths = config.model, config.model.text.lengths
    sentences = rows * SENTENCES_EACH if config.objective.local else 0
    return Batch(
        images=torch.zeros((rows, 3, model.image.pixels, model.image.pixels), dtype=torch.uint8),
        whole=_full(rows, lengths.whole),
        summary=_full(rows if config.objective.summary else 0, lengths.summary),
        sentences=_full(sentences, lengths.local),
        owner=torch.zeros(sentences, dtype=torch.int64),
        whole_ids=torch.zeros(rows, dtype=torch.int64),
        summary_ids=torch.zeros(rows, dtype=torch.int64),
    )


def _full(texts: int, length: int) -> Tokens:
    return Tokens(torch.zeros((texts, length), dtype=torch.int64), torch.ones((texts, length), dtype=torch.bool))


def _loss_bytes(config: Config, embeddings: Embeddings) -> int:
    """Embeddings and their gradients, the gathered text side likewise, and one chunk of similarities."""
    own = sum(each.numel() for each in embeddings)
    gathered = config.global_batch * (2 + (SENTENCES_EACH if config.objective.local else 0)) * config.model.embedding
    return 2 * FLOAT * (own + gathered) + LOSS_CHUNK
