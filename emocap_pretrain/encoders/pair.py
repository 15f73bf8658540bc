"""The model that is trained: two towers, one shared space, the learned scales and, for a sigmoid, a learned bias."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from emocap_kernels.contrastive.objectives import objective_of
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from emocap_pretrain.batch import Batch, Texts
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config, Model
from emocap_pretrain.encoders.image import ImageTower, check_image_weights
from emocap_pretrain.encoders.text import TextTower, check_text_weights
from emocap_pretrain.parts import PARTS, Part, active_parts
from emocap_pretrain.tokenizer import Vocabulary

MAX_SCALE = 100.0


def check_weights(model: Model) -> tuple[str, ...]:
    """Compares pretrained weights with both towers by names and shapes, before a run; no weight is read.

    Returns:
        What a person should know of the weights, one line each.

    Raises:
        ConfigError: If they do not fill the towers.
    """
    return check_image_weights(model.image) + check_text_weights(model.text)


class Embeddings(NamedTuple):
    """Unit vectors of one rank's rows, in float32, and the learned numbers that belong to no row.

    A named tuple, because DeepSpeed looks for tensors in the tuples and dictionaries that a module returns.

    Attributes:
        image: The pooled vector of each image.
        patches: The vectors of its patches.
        texts: By the name of the part: the vectors of its texts.
        scales: By what a part is aligned with, "image" or "patches": the factor of its cosines, at most `MAX_SCALE`.
        biases: By the same names: what is added to the scores, only where an objective has such a number.
    """

    image: Float[Tensor, "batch embedding"]
    patches: Float[Tensor, "batch patches embedding"]
    texts: dict[str, Float[Tensor, "texts embedding"]]
    scales: dict[str, Float[Tensor, ""]]
    biases: dict[str, Float[Tensor, ""]]

    def tensors(self) -> list[Tensor]:
        named = self.texts, self.scales, self.biases
        return [self.image, self.patches, *(each for some in named for each in some.values())]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Embeddings":
        """Returns the embeddings with every tensor changed."""
        named = ({name: change(each) for name, each in some.items()} for some in (self.texts, self.scales, self.biases))
        return Embeddings(change(self.image), change(self.patches), *named)


class TowerPair(nn.Module):
    """`batch -> Embeddings`; the whole forward pass is one call, so that an engine may wrap it."""

    logit_bias: nn.Parameter | None

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        *,
        weights: bool = True,
        text_architecture: Mapping[str, Any] | None = None,
    ) -> None:
        """Build both towers.

        Args:
            config: The run.
            vocabulary: The tokenizer's; it sizes the text embedding.
            weights: False skips loading pretrained weights, for a model that a checkpoint fills.
            text_architecture: As `TextTower` takes it, from a checkpoint.
        """
        super().__init__()
        settings = config.model
        self.image = ImageTower(settings.image, weights=weights)
        self.text = TextTower(settings.text, vocabulary, weights=weights, architecture=text_architecture)
        self.notes = self.image.notes + self.text.notes
        self.to_image = nn.Linear(self.image.width, settings.embedding, bias=False)
        self.to_patch = nn.Linear(self.image.width, settings.embedding, bias=False)
        self.to_text = nn.Linear(self.text.width, settings.embedding, bias=False)
        self.to_sentence = nn.Linear(self.text.width, settings.embedding, bias=False)
        # One element each, not none: DeepSpeed broadcasts parameters as bytes, which 0-dim tensors refuse.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(settings.initial_scale)))
        self.local_logit_scale = nn.Parameter(torch.full((1,), math.log(settings.initial_scale)))
        self._parts = active_parts(config.objective.weights)
        # Only where an objective reads it: every parameter of a model has a gradient, and is in its checkpoints.
        bias = torch.full((1,), settings.initial_bias) if _has_bias(config.objective, self._parts) else None
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(bias))
        self.precision = config.engine.precision
        self.pixels = settings.image.pixels
        self.prompt_length = settings.text.lengths.by_part[PARTS[0].name]  # A prompt is written like this part.
        if settings.checkpoint_activations:
            _checkpoint_activations(self)

    def forward(self, batch: Batch) -> Embeddings:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            pooled, patches = self.image(batch.images)
            image, patches = self.to_image(pooled), self.to_patch(patches)
            texts = {part.name: self._encoded(part, batch.texts[part.name]) for part in self._parts}
        return Embeddings(
            image=_unit(image),
            patches=_unit(patches),
            texts={name: _unit(each) for name, each in texts.items()},
            scales={"image": _clamped_scale(self.logit_scale), "patches": _clamped_scale(self.local_logit_scale)},
            # A copy: the update of the parameter must not change the value that is logged of this step.
            biases={} if self.logit_bias is None else {"image": self.logit_bias.float().squeeze(0).clone()},
        )

    def _encoded(self, part: Part, texts: Texts) -> Float[Tensor, "texts embedding"]:
        projection = self.to_text if part.aligned_with == "image" else self.to_sentence
        return projection(self.text(texts))

    def embed_images(self, images: Tensor) -> Float[Tensor, "batch embedding"]:
        return functional.normalize(self.to_image(self.image(images)[0]), dim=-1)

    def embed_texts(self, texts: Texts) -> Float[Tensor, "texts embedding"]:
        return functional.normalize(self.to_text(self.text(texts)), dim=-1)


def _has_bias(settings: ObjectiveConfig, parts: Iterable[Part]) -> bool:
    with_image = (part.name for part in parts if part.aligned_with == "image")
    return any(objective_of(settings.kind_of(name)).has_bias for name in with_image)


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)


class _ClampDescent(torch.autograd.Function):
    """min(x, bound) whose gradient passes at the bound when it points back inside.

    A plain clamp has no gradient above its bound: a scale that Adam's momentum once carried over it would never return.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x > bound)
        return x.clamp(max=bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = upstream
        (over,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return torch.where(over & (gradient < 0), torch.zeros_like(gradient), gradient), None


def _clamped_scale(logit_scale: Tensor) -> Float[Tensor, ""]:
    return _ClampDescent.apply(logit_scale.float(), math.log(MAX_SCALE)).exp().squeeze(0)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def _checkpoint_activations(model: TowerPair) -> None:
    model.image.backbone.set_grad_checkpointing(True)
    model.text.backbone.activation_checkpointing_enable()
