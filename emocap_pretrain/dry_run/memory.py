"""Estimates how much memory a rank needs, without allocating it.

Activations are not estimated by a formula, but by a trace. The forward and backward passes run at the real batch size
on fake tensors, which have a shape but no memory. The sizes of the storages that exist at the same time are added up.
So the estimate works for any tower, and activations that the backward pass recomputes are counted too (decision 8).

The rest is computed without a trace. The memory of weights, gradients and optimizer state follows from the stage of
ZeRO. The memory of the loss follows from the sizes of its largest tensors, which depend on the rows of all ranks. If a
rank encodes its rows in several passes, only one pass is traced, and the memory of the embeddings that are cached for
all rows is computed (training/representation_cache.py).
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from emocap_kernels.blocks import block_bytes_on
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from emocap_pretrain.config.batch_split import BatchSplit, batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.parts import active_parts
from emocap_pretrain.data.patch_mask import patches_along_a_side
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.model.pair import Embeddings, TowerPair
from emocap_pretrain.model.teacher import Teacher
from emocap_pretrain.training.ema import with_average
from emocap_pretrain.training.objective import vector_dtype
from emocap_pretrain.training.optimizer import optimizer_of, parameter_groups
from emocap_pretrain.training.zero import BUCKET

SHORTEST = 3  # Tokens of the shortest text: start, end, and one between them.
FLOAT = 4
LOSS_BLOCKS = 4  # A block of the loss holds similarities, their exponentials, and the gradients of both.


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Holds the estimated bytes on one rank's device at the peak of a step, without the overhead of CUDA and torch.

    Attributes:
        parameters: Number of parameters of the model.
        trained: Number of those parameters that are trained; the others are frozen.
        weights: Bytes of the weights, including those of a teacher, and of a whole averaged model that guides mining.
        gradients: Bytes of the gradients.
        optimizer: Bytes of the optimizer's state that the rank holds, with the moving average of the weights if there
            is one. With ZeRO, they include a copy of those weights that the rank updates.
            They are 0 if they are in host memory (`offloaded`).
        buffers: Bytes of the communication buffers of ZeRO.
        representations: Bytes of the images, texts and cached embeddings of all rows of a rank, and of the gradients of
            the embeddings; 0 if a rank encodes its rows in one pass.
        activations: Largest number of bytes that tensors use at one time in the forward pass, the loss and the backward
            pass, without weights and their gradients and without `representations`.
        state: Bytes of the optimizer's state of all ranks together, as a checkpoint stores it.
        patches: Number of patches of one image in the local loss.
        row_flops: FLOP of a step for one row: the forward and backward passes of both towers, their second forward pass
            if a rank encodes its rows in several passes, and the forward pass of a teacher and of an averaged model.
            The products within attention are not counted.
        offloaded: Bytes of the optimizer's state and of the copy of the weights that a rank keeps in host memory.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    representations: int
    activations: int
    state: int
    patches: int
    row_flops: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        """Returns the bytes of all parts together at the peak of a step."""
        held = self.weights + self.gradients + self.optimizer + self.buffers + self.representations
        return held + self.activations

    def lines(self) -> list[tuple[str, str]]:
        """Returns the rows that `--dry-run` prints, each as a name and a text."""
        cached = ("representations",) if self.representations else ()
        parts = ("weights", "gradients", "optimizer", "buffers", *cached, "activations")
        listed = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        offloaded = f"{self.offloaded / 2**30:.2f} GiB for the optimizer of each rank"
        return [
            ("parameters", f"{self.parameters / 1e6:.1f} M" + self._frozen()),
            ("memory", f"{self.total / 2**30:.2f} GiB on each rank's device, without the overhead of torch"),
            ("", f"GiB: {listed}"),
            *([("host memory", offloaded)] if self.offloaded else []),
        ]

    def _frozen(self) -> str:
        return "" if self.trained == self.parameters else f", of which {self.trained / 1e6:.1f} M are trained"


def estimate(config: Config, ranks: int, *, on_gpu: bool, shortest: bool = False) -> MemoryEstimate:
    """Estimates the memory of a rank by tracing one forward and backward pass of the towers.

    Args:
        config: The config of the run.
        ranks: World size.
        on_gpu: Whether the ranks use GPUs, on which the losses compute larger blocks of scores.
        shortest: True assumes captions of the shortest length without local sentences, for a lower bound; False
            assumes captions of the longest length with five local sentences each, for an upper bound.

    Raises:
        ConfigError: If the optimizer does not support the stage of ZeRO, if a key of `lr_scales` matches no parameter,
            if more is frozen than the model has, or if `objective.patch_mask` is set for a tower whose patches do not
            divide the image into equal squares.
    """
    captions = _Captions.of(config, shortest=shortest)
    split = batch_split(config.global_batch, config.micro_batch, ranks=ranks)
    model, settings, precision = empty_model(config), config.objective, config.engine.precision
    source = settings.teacher
    with torch.device("meta"):
        teacher = Teacher(source, pixels=model.pixels, precision=precision) if source else None
    groups = parameter_groups(model, config.optimizer)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Within the mode, the parameters become fake tensors of a CPU, so the towers run as they do on real tensors.
        for each in filter(None, (model, teacher)):
            each.to_empty(device="cpu")
        # Fused kernels need no blocks of scores, so the lower bound does not count the large blocks of a GPU.
        step = _traced(model, teacher, config, split, captions, on_gpu=on_gpu and not shortest)
        unrecorded = (split.passes > 1) + settings.mines_by_average
        row_flops = _flops(model, teacher, captions.batch(1, model.pixels), unrecorded=unrecorded)
    teacher_bytes = FLOAT * sum(parameter.numel() for parameter in teacher.parameters()) if teacher else 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stage, size = config.engine.zero_stage, parameters * FLOAT
    optimizer = with_average(optimizer_of(config.optimizer, stage), config.ema)
    # The parts that are counted without a trace. Everything is stored in float32 (decision 4).
    trained = [each for group in groups for each in group.parameters.values()]
    numbers = (optimizer.state_elements(each, group.options) for group in groups for each in group.parameters.values())
    state = sum(numbers) * FLOAT
    masters = sum(each.numel() for each in trained) * FLOAT
    # With ZeRO each rank also has a copy of those weights that it updates.
    held = state if stage == 0 else (masters + state) // ranks
    # On a CPU the host memory is the memory of the device.
    offloads = on_gpu and config.engine.offload_optimizer
    return MemoryEstimate(
        parameters=parameters,
        trained=masters // FLOAT,
        weights=size // (ranks if stage == 3 else 1) + teacher_bytes + size * settings.mines_by_average,
        # With several passes each rank has the whole gradients, because they are reduced only after the last pass.
        gradients=masters // (ranks if stage >= 2 and split.passes == 1 else 1),
        optimizer=0 if offloads else held,
        offloaded=held if offloads else 0,
        buffers=0 if stage == 0 else min(BUCKET * FLOAT, masters),
        representations=step.representations,
        activations=step.activations,
        state=state,
        patches=step.patches,
        row_flops=row_flops,
    )


def empty_model(config: Config) -> TowerPair:
    """Returns the model of a new run on the device "meta", so that it needs almost no memory."""
    return StartingPoint(config.model).empty_model(config.objective, config.engine.precision)


@dataclass(frozen=True, slots=True)
class _Captions:
    """Describes the captions that the estimate assumes.

    Attributes:
        lengths: Number of tokens of a text, by the name of its caption part.
        texts: Number of texts for each image, by the name of the part.
        several: Names of the parts whose texts are compared with patches. A caption can have no text, one text or
            several texts of such a part.
    """

    lengths: Mapping[str, int]
    texts: Mapping[str, int]
    several: frozenset[str]

    @classmethod
    def of(cls, config: Config, *, shortest: bool) -> "_Captions":
        parts = active_parts(config.objective.weights)
        several = frozenset(part.name for part in parts if part.aligned_with == "patches")
        if shortest:
            texts = {part.name: int(part.name not in several) for part in parts}
            return cls(dict.fromkeys(texts, SHORTEST), texts, several)
        return cls(config.model.text.lengths.by_part, {part.name: part.texts_per_image for part in parts}, several)

    def batch(self, rows: int, pixels: int) -> Batch:
        """Returns a batch of `rows` images with these captions."""
        images = torch.zeros((rows, 3, pixels, pixels), dtype=torch.uint8)
        return Batch(images, {name: self._texts(name, rows * each) for name, each in self.texts.items()})

    def _texts(self, name: str, texts: int) -> Texts:
        ids = torch.zeros((texts, self.lengths[name]), dtype=torch.int64)
        owner = torch.zeros(texts, dtype=torch.int64) if name in self.several else None
        return Texts(ids, torch.ones_like(ids, dtype=torch.bool), owner)


@dataclass(frozen=True, slots=True)
class _Step:
    """Holds the three values of a `MemoryEstimate` that depend on the traced pass; `MemoryEstimate` explains them."""

    representations: int
    activations: int
    patches: int


def _traced(
    model: TowerPair, teacher: Teacher | None, config: Config, split: BatchSplit, captions: _Captions, *, on_gpu: bool
) -> _Step:
    """Traces one pass of the towers, with as many rows as the largest pass has, and returns the values of `_Step`.

    The losses are not traced; their memory is computed. The peak of a step lies in the traced pass or in the losses,
    and the larger of the two counts. If a step needs several passes, the inputs, the embeddings and the gradients of
    the embeddings exist for all rows of a rank. Their memory is computed from the number of rows.
    """
    # Gradients of parameters are counted by `estimate`. Each is dropped as soon as it is complete.
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
    existing = [*model.state_dict().values(), *(teacher.state_dict().values() if teacher else ())]
    with _LiveStorages(existing) as live:
        batch = captions.batch(split.micro_batch, model.pixels)
        inputs = live.bytes
        embeddings = model(batch)
        patches = embeddings.patches.shape[1]
        if config.objective.patch_mask:
            patches_along_a_side(patches, model.pixels)
        held = live.bytes
        # Any scalar of all embeddings starts the same backward pass of the towers as the loss does.
        _sum(embeddings).backward()
    with _LiveStorages([*existing, batch.images]) as of_teacher:
        guides = teacher(batch.images).shape[1] if teacher else 0
    mines_by_average = config.objective.mines_by_average
    with _LiveStorages([*existing, batch.images]) as of_average, torch.no_grad():
        if mines_by_average:
            model(batch)
    rows, texts = split.rows, sum(captions.texts.values())
    own = FLOAT * rows * (1 + patches + texts) * config.model.embedding
    # Losses of bf16 vectors need copies of the embeddings, and gradients of these copies, in half as many bytes each.
    copies = own if vector_dtype(config.objective, config.engine.precision) == torch.bfloat16 else 0
    guides += 2 * config.model.embedding * mines_by_average  # One vector of the image and one of the text.
    gathered = FLOAT * (rows + config.global_batch) * guides + own * mines_by_average
    of_losses = own + copies + gathered + _loss_bytes(config, captions, rows, patches, on_gpu=on_gpu)
    # The teacher and the averaged model have run when the losses begin.
    at_loss = max(of_teacher.peak_bytes, of_average.peak_bytes, of_losses)
    # Two times can be the peak: the loss, or some moment of the forward and backward pass of the towers. In a step of
    # one pass all activations are held at the loss. With several passes there are none; instead, the inputs, embeddings
    # and gradients of all rows exist while the last pass runs.
    if split.passes == 1:
        return _Step(0, max(live.peak_bytes, held + at_loss), patches)
    of_all_rows = inputs * rows // split.micro_batch + 2 * own
    return _Step(of_all_rows, max(live.peak_bytes - inputs, at_loss - own), patches)


def _flops(model: TowerPair, teacher: Teacher | None, batch: Batch, *, unrecorded: int) -> int:
    """Returns the FLOP of the towers' forward and backward passes and of the teacher's forward pass for `batch`.

    `unrecorded` is the number of forward passes without gradients: one if representations are cached, and one more if
    mining uses the averaged model. The teacher runs once, because the loss, which calls it, is computed once. This
    function runs separately from the trace of the memory, because the counter of FLOP keeps tensors alive. The FLOP are
    proportional to the rows, so a batch of one row suffices.
    """
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            for _ in range(unrecorded):
                model(batch)
        _sum(model(batch)).backward()
        if teacher:
            teacher(batch.images)
    return counter.get_total_flops()


def _sum(embeddings: Embeddings) -> Tensor:
    return torch.stack([each.sum() for each in embeddings.tensors()]).sum()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operators have allocated within the `with` block and that are not freed.

    The storages of the tensors in `existing` are not counted. The class counts storages rather than tensors, because
    several tensors (views) can share one storage. A storage is counted until Python frees it. So the tensors that
    autograd keeps for the backward pass are included.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._known = weakref.WeakSet[Any](each.untyped_storage() for each in existing)

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


def _loss_bytes(config: Config, captions: _Captions, rows: int, patches: int, *, on_gpu: bool) -> int:
    """Returns the bytes that the losses of a rank need in addition to the rank's own embeddings and their gradients.

    They consist of the embeddings of the texts of all ranks, the gradients of these embeddings, and the blocks of
    scores.
    """
    gathered = config.global_batch * sum(captions.texts.values()) * config.model.embedding
    # `max(1, ...)` is for the losses of whole images, which have one score for each row and text.
    most = max((captions.texts[name] for name in captions.several), default=0)
    scores = FLOAT * rows * config.global_batch * max(1, patches * most)
    block = min(block_bytes_on(torch.device("cuda" if on_gpu else "cpu")), scores)
    return 2 * FLOAT * gathered + LOSS_BLOCKS * block
