"""Defines the model that is trained: an image tower, a text tower, projections, and learned scales.

With the `sigmoid` objective the model also has a learned bias. If the objective has labels, the model has a head, which
predicts the labels from the pooled vectors of the image tower. `TowerPair.of` builds the model from settings, and
`TowerPair.forward` maps a `Batch` to `Embeddings`, from which `training/objective.py` computes the loss. The towers are
in `timm_image.py` and `transformers_text.py`; they implement the interfaces of `towers.py`.

Towers and projections may run in bf16 or fp16. Vectors are always normalized in float32, because the losses need unit
vectors. Scales are always float32, because a step changes a scale by less than bf16 can represent (decision 4).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from emocap_kernels.contrastive.objectives import objective_of
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from emocap_pretrain.config.fields import Precision
from emocap_pretrain.config.model import ModelConfig
from emocap_pretrain.config.objective import LabelConfig, ObjectiveConfig
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.parts import PARTS, PROMPT_PART, Part, active_parts
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.freeze import freeze_towers, is_frozen
from emocap_pretrain.model.lora import add_adapters
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.towers import ImageTower, TextTower
from emocap_pretrain.model.transformers_text import TransformersTextTower

# The losses rely on this bound and never clamp: scores of unit vectors are at most this large, and one shift brings the
# exponentials of a whole batch into the range of float32 (decisions 7 and 9).
MAX_SCALE = 100.0
HEAD = ("head.weight", "head.bias")  # The names of the head's parameters in the state dict.


class Embeddings(NamedTuple):
    """Holds the unit vectors of one rank's rows, the learned scales and biases, and the head's outputs, in float32.

    It is a named tuple because DeepSpeed looks for tensors in the tuples and dictionaries that a module returns. For
    the same reason `texts`, `scales`, `biases` and `outputs` are dictionaries and not general mappings.

    Attributes:
        image: The projected pooled vector of each image.
        patches: The projected vectors of the patches of each image.
        texts: The projected vectors of the texts of each caption part, by the part's name.
        scales: The learned factors by which cosines are multiplied, at most `MAX_SCALE`. The factor with the key
            "image" is for texts that are compared with pooled vectors, and the factor with the key "patches" for texts
            that are compared with patches.
        biases: The learned bias that is added to the scores of pooled vectors, with the key "image"; empty if no
            objective of the model has a bias.
        outputs: The outputs of the head for each label, by the label's name: a score (logit) for each class, or one
            number. They are not unit vectors. Empty if the model has no head.
    """

    image: Float[Tensor, "batch embedding"]
    patches: Float[Tensor, "batch patches embedding"]
    texts: dict[str, Float[Tensor, "texts embedding"]]
    scales: dict[str, Float[Tensor, ""]]
    biases: dict[str, Float[Tensor, ""]]
    outputs: dict[str, Float[Tensor, "batch outputs"]]

    def tensors(self) -> list[Tensor]:
        """Returns all tensors in one list. The order is the same for all batches with the same caption parts."""
        named = self.texts, self.scales, self.biases, self.outputs
        return [self.image, self.patches, *(each for some in named for each in some.values())]


class TowerPair(nn.Module):
    """Defines the model that is trained. One forward call maps a batch to `Embeddings`, so that DeepSpeed can wrap it.

    A checkpoint stores the state dict of this class as the weights. So if a parameter is renamed, older checkpoints do
    not match any more. The caption parts that are compared with whole images share the projection `to_text`, and the
    parts that are compared with patches share `to_sentence`. `logit_scale` and `local_logit_scale` are the logarithms
    of the two learned scales. `head` is one linear layer for all labels. Its rows are the outputs of the first label,
    then those of the second one, in the order of `labels`.

    Example:
        `TowerPair(image, text, embedding=16)` makes a model of any two towers (docs/extend/tower.md). `TowerPair.of`
        also builds the towers, from the settings.
    """

    logit_bias: nn.Parameter | None
    head: nn.Linear | None

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        *,
        parts: Sequence[Part] = PARTS,
        embedding: int = 512,
        initial_scale: float = 14.3,
        initial_bias: float | None = None,
        project_images: bool = True,
        text_bias: bool = False,
        prompt_length: int = 48,
        precision: Precision = "fp32",
        labels: Sequence[LabelConfig] = (),
    ) -> None:
        """Combines two towers with projections into a shared space and with two learned scales.

        One scale is for the scores of pooled vectors, and the other for the scores of patches.

        Args:
            image: The tower of images.
            text: The tower of texts.
            parts: The caption parts that `forward` encodes. Every batch must have them.
            embedding: Size of a vector in the shared space.
            initial_scale: Initial value of both learned scales, in (0, `MAX_SCALE`].
            initial_bias: Initial value of the bias that the sigmoid objective adds to its scores; None for no bias.
            project_images: Whether pooled image vectors are projected. Without a projection, they must have the size
                `embedding`.
            text_bias: Whether the projection of the texts that are compared with whole images has a bias.
            prompt_length: Largest number of tokens of an evaluation prompt.
            precision: "bf16" and "fp16" run towers and projections of `forward` under autocast. The methods for an
                evaluation, such as `embed_images`, always compute in float32.
            labels: The labels that the head predicts. Without labels the model has no head.

        Raises:
            ConfigError: If images are not projected, and their vectors do not have the size `embedding`.
        """
        super().__init__()
        self.image, self.text = image, text
        if not project_images and image.width != embedding:
            raise ConfigError(
                f"model.embedding={embedding}, but with project_images=false image vectors have the size {image.width}."
            )
        self.to_image = nn.Linear(image.width, embedding, bias=False) if project_images else nn.Identity()
        self.to_patch = nn.Linear(image.patch_width, embedding, bias=False)
        self.to_text = nn.Linear(text.width, embedding, bias=text_bias)
        self.to_sentence = nn.Linear(text.width, embedding, bias=False)
        # Shape [1] rather than []: DeepSpeed broadcasts parameters as bytes, which 0-dim tensors do not support.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(initial_scale)))
        self.local_logit_scale = nn.Parameter(torch.full((1,), math.log(initial_scale)))
        bias = None if initial_bias is None else nn.Parameter(torch.full((1,), initial_bias))
        # A parameter that is registered as None exists as an attribute, but is not in the state dict.
        self.register_parameter("logit_bias", bias)
        self.labels = tuple(labels)
        outputs = sum(label.outputs for label in self.labels)
        self.register_module("head", _zero_linear(image.width, outputs) if outputs else None)
        self.pixels, self.prompt_length, self.precision = image.pixels, prompt_length, precision
        self._parts = tuple(parts)

    @classmethod
    def of(
        cls,
        settings: ModelConfig,
        objective: ObjectiveConfig,
        vocabulary: Vocabulary,
        *,
        precision: Precision = "fp32",
        weights: bool = True,
        text_architecture: Mapping[str, Any] | None = None,
    ) -> "TowerPair":
        """Builds both towers from the settings, and the model from the towers.

        Parameters without pretrained weights get random values from torch's global generator. The engine broadcasts the
        weights of rank 0, so all ranks begin with the same weights.

        Args:
            settings: The towers, the shared space and the learned scales.
            objective: The settings of the loss. They decide which caption parts are encoded, and whether there is a
                bias.
            vocabulary: Size and padding id of the tokenizer, for the text embedding.
            precision: "bf16" and "fp16" run towers and projections under autocast.
            weights: Whether the weights of a pretrained text tower are loaded. False is for a model that takes its
                weights from a checkpoint. The weights of the image tower are random in any case;
                `StartingPoint.load_into` loads them.
            text_architecture: The result of `TextTower.recorded` that is stored in a checkpoint. If it is given, a
                pretrained text tower is built from it, and the source of its pretrained weights is not opened.

        Raises:
            ConfigError: If a tower cannot be built, pretrained weights do not match it, or more is to be frozen than
                the model has.
        """
        image = TimmImageTower(settings.image)
        text = TransformersTextTower(settings.text, vocabulary, weights=weights, architecture=text_architecture)
        add_adapters(image, settings.image.lora, "model.image.lora")
        add_adapters(text, settings.text.lora, "model.text.lora")
        freeze_towers(image, text, settings)
        parts = active_parts(objective.weights)
        pair = cls(
            image,
            text,
            parts=parts,
            embedding=settings.embedding,
            initial_scale=settings.initial_scale,
            # Without an objective that uses a bias there is none: it would get no gradient, and be in all checkpoints.
            initial_bias=settings.initial_bias if _has_bias(objective, parts) else None,
            project_images=settings.project_images,
            text_bias=settings.text_bias,
            prompt_length=settings.text.lengths.by_part[PROMPT_PART.name],
            precision=precision,
            labels=objective.labels,
        )
        pair._freeze(settings.freeze)
        if not parts:  # Weight decay would change what no loss reads.
            pair._freeze_all_but_head()
        for tower in (image, text):
            # Nothing is recomputed in a frozen tower, because there is no backward pass through it.
            if settings.checkpoint_activations and not is_frozen(tower):
                tower.checkpoint_activations()
        return pair.train()

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns remarks for the user on the weights of a pretrained text tower, one line each."""
        return self.text.notes

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all modules, but keeps a frozen tower in evaluation mode.

        So a frozen tower returns the same vectors for an image or text in every step. A tower of which only the first
        blocks are frozen is trained with dropout in all of its blocks.
        """
        super().train(mode)
        for tower in (self.image, self.text):
            if is_frozen(cast(nn.Module, tower)):
                cast(nn.Module, tower).eval()
        return self

    def forward(self, batch: Batch) -> Embeddings:
        """Returns the embeddings of the images, and of the texts of all caption parts that the loss uses.

        It runs no collectives of its own. At ZeRO stage 3, DeepSpeed runs collectives that gather the parameters of
        each module before its forward pass. Their order is the same on all ranks, because the parts have a fixed order,
        and because a rank without rows runs the towers too.
        """
        with autocast(batch.images.device, self.precision):
            pooled, patches = self.image.encode_image(batch.images)
            image, patches = self.to_image(pooled), self.to_patch(patches)
            texts = {part.name: self._encoded(part, batch.texts[part.name]) for part in self._parts}
        # Autocast ends before `_unit`, the scales and the head, which stay in float32 (decision 4).
        return Embeddings(
            image=_unit(image),
            patches=_unit(patches),
            texts={name: _unit(each) for name, each in texts.items()},
            scales={"image": _clamped_scale(self.logit_scale), "patches": _clamped_scale(self.local_logit_scale)},
            # The bias is copied, so that the optimizer's update does not change the value that this step logs.
            biases={} if self.logit_bias is None else {"image": self.logit_bias.float().squeeze(0).clone()},
            outputs=self.head_outputs(pooled),
        )

    def head_outputs(self, pooled: Float[Tensor, "batch width"]) -> dict[str, Float[Tensor, "batch outputs"]]:
        """Returns the outputs of the head for each label, by the label's name: logits of classes, or one number.

        If the model has no head, the result is empty.

        Args:
            pooled: Pooled vectors of the image tower before the projection, as `embed_images_and_pooled` returns them.
        """
        if self.head is None:
            return {}
        outputs = self.head(pooled.float()).split([label.outputs for label in self.labels], dim=-1)
        return {label.name: each for label, each in zip(self.labels, outputs, strict=True)}

    def _freeze(self, names: Iterable[str]) -> None:
        for name in names:
            part: nn.Module | nn.Parameter | None = getattr(self, name)
            if part is None:
                raise ConfigError(f"model.freeze has {name}, but the objective has none; leave it out.")
            part.requires_grad_(False)

    def _freeze_all_but_head(self) -> None:
        """Freezes all parameters except those of the image tower and of the head, for a training on labels alone.

        Only the losses of caption parts read the text tower, the projections, the scales and the bias.
        """
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] not in ("image", "head"):
                parameter.requires_grad_(False)

    def _encoded(self, part: Part, texts: Texts) -> Float[Tensor, "texts embedding"]:
        projection = self.to_text if part.aligned_with == "image" else self.to_sentence
        return projection(self.text.encode_text(texts))

    def embed_images(self, images: Tensor) -> Float[Tensor, "batch embedding"]:
        """Returns the unit vectors of images, for an evaluation.

        It does not use autocast, so an evaluation computes in float32, also if the run was trained in bf16 or fp16.
        """
        return functional.normalize(self.to_image(self.image.encode_image(images)[0]), dim=-1)

    def embed_images_and_pooled(
        self, images: Tensor
    ) -> tuple[Float[Tensor, "batch embedding"], Float[Tensor, "batch width"]]:
        """Returns the result of `embed_images`, and the pooled vectors before the projection, in one pass."""
        pooled = self.image.encode_image(images)[0]
        return functional.normalize(self.to_image(pooled), dim=-1), pooled

    def embed_images_pooled_and_patches(
        self, images: Tensor
    ) -> tuple[
        Float[Tensor, "batch embedding"], Float[Tensor, "batch width"], Float[Tensor, "batch patches embedding"]
    ]:
        """Returns the unit vectors of images, their pooled vectors, and the unit vectors of their patches, in one pass.

        The pooled vectors are those before the projection.
        """
        pooled, patches = self.image.encode_image(images)
        vectors, patches = (
            functional.normalize(each, dim=-1) for each in (self.to_image(pooled), self.to_patch(patches))
        )
        return vectors, pooled, patches

    def embed_images_and_patches(
        self, images: Tensor
    ) -> tuple[Float[Tensor, "batch embedding"], Float[Tensor, "batch patches embedding"]]:
        """Returns the results of `embed_images` and `embed_patches`, with one pass of the tower."""
        pooled, patches = self.image.encode_image(images)
        return functional.normalize(self.to_image(pooled), dim=-1), functional.normalize(self.to_patch(patches), dim=-1)

    def embed_texts(self, texts: Texts) -> Float[Tensor, "texts embedding"]:
        """Returns the unit vectors of texts in the space of the pooled image vectors, for an evaluation.

        Like `embed_images`, it computes in float32.
        """
        return functional.normalize(self.to_text(self.text.encode_text(texts)), dim=-1)

    def embed_patches(self, images: Tensor) -> Float[Tensor, "batch patches embedding"]:
        """Returns the unit vectors of the patches of images, in float32 like `embed_images`."""
        return functional.normalize(self.to_patch(self.image.encode_image(images)[1]), dim=-1)

    def embed_sentences(self, texts: Texts) -> Float[Tensor, "texts embedding"]:
        """Returns the unit vectors of texts in the space of the patches, in float32 like `embed_images`."""
        return functional.normalize(self.to_sentence(self.text.encode_text(texts)), dim=-1)

    @property
    def scale(self) -> float:
        """Returns the factor by which the loss multiplies cosines of pooled vectors, at most `MAX_SCALE`."""
        return float(_clamped_scale(self.logit_scale.detach()))

    @property
    def local_scale(self) -> float:
        """Returns the factor by which the loss multiplies scores of patches and sentences, at most `MAX_SCALE`."""
        return float(_clamped_scale(self.local_logit_scale.detach()))


class NoTextTower(nn.Module):
    """Takes the place of the text tower in the model of an image tower alone (`image_alone`), and refuses all texts."""

    width = 1
    notes: tuple[str, ...] = ()

    def encode_text(self, texts: Texts) -> Float[Tensor, "texts width"]:  # noqa: ARG002 - it reads none
        raise ConfigError("the model is an image tower alone, which cannot read texts.")

    def parameter_depths(self) -> dict[str, int]:
        return {}

    def checkpoint_activations(self) -> None:
        pass

    def recorded(self) -> None:
        return None


def image_alone(tower: ImageTower) -> TowerPair:
    """Returns a model in evaluation mode that embeds images with a tower, and cannot embed texts.

    The vector of an image is the pooled vector of the tower, scaled to unit length. The projections of patches, texts
    and sentences are not used. They are 0 and not random, so that models of equal towers have equal weights and equal
    digests.
    """
    pair = TowerPair(tower, NoTextTower(), parts=(), embedding=tower.width, project_images=False)
    for projection in (pair.to_patch, pair.to_text, pair.to_sentence):
        nn.init.zeros_(projection.weight)
    return pair.eval()


def pair_of(
    image: ImageTower,
    text: TextTower,
    to_image: nn.Module | None,
    to_text: nn.Module,
    *,
    prompt_length: int,
    logit_scale: float | None,
) -> TowerPair:
    """Returns a model in evaluation mode of two towers and two projections of another library.

    The projections of patches and sentences are not used, and are 0 as in `image_alone`.

    Args:
        image: The image tower.
        text: The text tower.
        to_image: The projection of the images' pooled vectors; None if they are not projected.
        to_text: The projection of the texts' vectors.
        prompt_length: Largest number of tokens of an evaluation prompt.
        logit_scale: The logarithm of the learned scale; None keeps the initial value of a new model.
    """
    with torch.inference_mode():
        embedding = to_text.eval()(torch.zeros((1, text.width))).shape[-1]
    pair = TowerPair(
        image, text, parts=(), embedding=embedding, project_images=to_image is not None, prompt_length=prompt_length
    )
    for projection in (pair.to_patch, pair.to_sentence):
        nn.init.zeros_(projection.weight)
    pair.register_module("to_text", to_text)
    if to_image is not None:
        pair.register_module("to_image", to_image)
    if logit_scale is not None:
        nn.init.constant_(pair.logit_scale, logit_scale)
    return pair.eval()


def _has_bias(settings: ObjectiveConfig, parts: Iterable[Part]) -> bool:
    with_image = (part.name for part in parts if part.aligned_with == "image")
    return any(objective_of(settings.kind_of(name)).has_bias for name in with_image)


def _zero_linear(width: int, outputs: int) -> nn.Linear:
    """Returns a linear layer whose weights and biases are 0.

    Through weights of 0 the losses of labels give the image tower no gradient. So they begin to change the tower only
    after the first update of the head.
    """
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the context in which towers run with this precision: autocast, which does nothing for "fp32"."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)


class _ClampDescent(torch.autograd.Function):
    """Computes min(x, bound), with a gradient by which a descent step can move x back below the bound.

    Above the bound a positive gradient is kept, because a descent step then decreases x. A negative gradient becomes 0
    there. The gradient of a plain clamp is always 0 above the bound. Adam's momentum may move a scale above the bound,
    and with a plain clamp the scale would never return. It is not possible to clamp the parameter itself after each
    update, because under ZeRO the optimizer updates its own copy of the parameter (decision 7).
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x > bound)
        return x.clamp(max=bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = upstream
        (over,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        # A descent step subtracts the gradient, so a negative gradient would move x further above the bound.
        return torch.where(over & (gradient < 0), torch.zeros_like(gradient), gradient), None


def _clamped_scale(logit_scale: Tensor) -> Float[Tensor, ""]:
    # The logarithm is clamped before `exp`, so that a parameter far above the bound cannot overflow.
    return _ClampDescent.apply(logit_scale.float(), math.log(MAX_SCALE)).exp().squeeze(0)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
