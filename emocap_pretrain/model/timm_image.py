"""Builds image towers from models of timm, with one vector for the image and one for each patch.

`TimmImageTower` builds a tower with random weights. `converted` lets timm give pretrained weights the names and shapes
of a tower, and compares both. `interop/image_weights.py` reads the weights from their source, and loads the result.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

import emocap_torchvision
from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.weights import Fit, Shapes, before_load_state_dict, shapes_of

emocap_torchvision.install()
import timm  # noqa: E402 - after emocap_torchvision
from timm.layers.norm_act import freeze_batch_norm_2d  # noqa: E402
from timm.models import build_model_with_cfg, clean_state_dict, group_parameters  # noqa: E402

# Arguments of timm's factories, which open files, contact hubs or choose classes. All other arguments go to the model.
# They are read from the signatures, so that an argument that a later timm adds is refused too.
FACTORY_ARGUMENTS = frozenset(
    {"device", "dtype", *inspect.signature(timm.create_model).parameters}
    | set(inspect.signature(build_model_with_cfg).parameters)
) - {"kwargs"}

# Weights of a classifier are left out. Its module has one of these names, or one that the config of timm's model gives.
_HEADS = {"head", "heads", "fc", "classifier"}
COUNTER = ".num_batches_tracked"  # Batch norm counts its batches in this buffer, and frozen batch norm has none.
_QUICK_GELU = re.compile(r"openai|quick.?gelu", re.IGNORECASE)


class TimmImageTower(nn.Module):
    """Implements `ImageTower` with a model of timm whose features are a sequence of tokens or a feature map.

    Attributes:
        mean: Mean of the 8-bit pixel values with which the model was trained, for each colour channel.
        std: Standard deviation of these values, for each colour channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ImageTowerConfig) -> None:
        """Builds the tower with random weights. Pretrained weights are loaded by `interop/image_weights.py`.

        Args:
            settings: Name, size and options of the model. If they name pretrained weights, batch norm is frozen.

        Raises:
            ConfigError: If timm has no such model or refuses its options, or if the model cannot be trained here
                (`_checked` lists the reasons).
        """
        super().__init__()
        self.backbone: Any = _checked(_create(settings), settings)
        self.pixels = settings.pixels
        # In some mobile towers the pooled vector is wider than the features.
        self.width: int = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.patch_width: int = self.backbone.num_features
        self.prefix_tokens: int = getattr(self.backbone, "num_prefix_tokens", 0)
        statistics = self.backbone.pretrained_cfg
        # The statistics are those of values in [0, 1]. The buffers follow the module to its device, but are not in the
        # state dict, because they follow from the settings.
        for name, given in (("mean", settings.mean), ("std", settings.std)):
            values = torch.tensor(statistics[name] if given is None else given)
            self.register_buffer(name, values.view(1, 3, 1, 1) * 255, persistent=False)

    def encode_image(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches patch_width"]]:
        if images.shape[0] == 0:  # One black image runs all parameters and hooks; its vectors are dropped.
            pooled, patches = self.encode_image(images.new_zeros((1, *images.shape[1:])))
            return pooled[:0], patches[:0]
        features = self.backbone.forward_features((images.to(self.mean.dtype) - self.mean) / self.std)
        pooled = self.backbone.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # The cells of the last feature map are the patches.
            last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return pooled, features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
        # The first tokens of a transformer are no patches: class and register tokens.
        return pooled, features[:, self.prefix_tokens :]

    def parameter_depths(self) -> dict[str, int]:
        matcher = self.backbone.group_matcher(coarse=False)
        depths = cast("dict[str, int]", group_parameters(self.backbone, matcher, reverse=True))
        return {f"backbone.{name}": depth for name, depth in depths.items()}

    def checkpoint_activations(self) -> None:
        self.backbone.set_grad_checkpointing(True)


def _create(settings: ImageTowerConfig, **weights: Any) -> Any:
    """Creates a model of timm without a classifier.

    `weights` are arguments of `timm.create_model` for pretrained weights, such as `pretrained`.
    """
    options: dict[str, Any] = dict(settings.options)
    if foreign := sorted(FACTORY_ARGUMENTS & options.keys()):
        raise ConfigError(
            f"{settings.key}.options.{foreign[0]} is an argument of timm's factory and not of a model; options are "
            f"those of the model's own class, such as depth. Weights come from {settings.key}.pretrained."
        )
    # Models of these families need the size of the images for their position embeddings.
    if settings.name.startswith(("vit_", "deit", "eva", "beit")):
        options["img_size"] = settings.pixels
    if settings.patch_dropout:
        options["patch_drop_rate"] = settings.patch_dropout
    try:
        return timm.create_model(settings.name, num_classes=0, **options, **weights)
    except (RuntimeError, TypeError, ValueError, ArithmeticError, AssertionError, OSError) as error:
        raise ConfigError(
            f"{settings.key}: timm refuses {settings.name!r}: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error


@dataclass(frozen=True, slots=True)
class Converted:
    """Holds pretrained weights with the names and shapes of a tower.

    Attributes:
        tensors: All parameters and buffers of the model of timm, by name.
        resized: The tensors that timm has resized, with both shapes.
        left_out: Names of weights that belong to the classifier, which a tower does not have.
        activation: A remark for the user if the tower computes another activation than the weights need; else None.
    """

    tensors: Mapping[str, Tensor]
    resized: tuple[str, ...]
    left_out: tuple[str, ...]
    activation: str | None


def converted(
    settings: ImageTowerConfig, given: Mapping[str, Tensor] | None, *, written: Iterable[str] = ()
) -> Converted:
    """Returns pretrained weights as timm gives them to the model `settings.name`.

    timm knows older names of its models and the layouts of some other libraries, and resizes position embeddings. It
    then calls `load_state_dict`. So names and shapes are compared when timm calls it. timm makes a second model for
    this, so for a moment the weights exist twice. On the device "meta", nothing but names and shapes exists.

    Args:
        settings: The settings of the tower.
        given: Tensors in a layout that timm knows, by name. If None, timm downloads the weights that it has for the
            model.
        written: Texts that may show who has trained the weights, such as the name of the file.

    Raises:
        ConfigError: If a parameter has no weights or weights of another shape, or if weights belong to no parameter.
    """
    seen: list[Shapes] = []

    def check(expected: Shapes, loaded: Shapes) -> None:
        seen.append(loaded)
        _require(expected, loaded, settings)

    # timm strips prefixes of wrappers ("module.") from the names in a file, but not from those of a state dict.
    tensors = None if given is None else clean_state_dict(dict(given))
    # The model draws random weights before it gets the others, and later draws must not depend on this.
    with torch.random.fork_rng(devices=[]), before_load_state_dict(check):
        model = _with_weights(settings, tensors, seen)
    if not seen:
        raise ConfigError(
            f"{settings.key}.pretrained: timm loads the weights of {settings.name} with special code, so that it is "
            "unknown whether they fill the tower; give a file of weights."
        )
    before, own = shapes_of(tensors or {}), model.state_dict()
    both = sorted(before.keys() & seen[0].keys())
    return Converted(
        tensors={name: tensor for name, tensor in own.items() if not name.endswith(COUNTER)},
        resized=tuple(
            f"{name} {list(before[name])} to {list(seen[0][name])}" for name in both if before[name] != seen[0][name]
        ),
        left_out=tuple(sorted(name for name in before if name not in own and name.split(".")[0] in _heads(settings))),
        activation=_activation(model, settings, written),
    )


def _with_weights(settings: ImageTowerConfig, tensors: dict[str, Tensor] | None, seen: list[Shapes]) -> Any:
    """Lets timm create a model with these weights. `seen` is not empty if timm has compared them with the model."""
    overlay = None if tensors is None else {"state_dict": tensors}
    try:
        model = _create(settings, pretrained=True, pretrained_cfg_overlay=overlay)
    except (ConfigError, LookupError, AttributeError) as error:
        if tensors and not seen:  # timm has failed at an unexpected name before the names could be compared.
            with torch.device("meta"):
                _require(shapes_of(_create(settings).state_dict()), shapes_of(tensors), settings)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{settings.key}.pretrained: timm cannot convert these weights ({error!r}).") from error
    return model


def _require(expected: Shapes, given: Shapes, settings: ImageTowerConfig) -> None:
    """Checks that the weights match the parameters of the tower. Weights of a classifier head are ignored.

    Args:
        expected: The shapes in the tower, by name.
        given: The shapes of the weights, by name.
        settings: The settings of the tower, for the message.

    Raises:
        ConfigError: If a parameter has no weights or weights of another shape, or if weights belong to no parameter.
    """
    heads = _heads(settings)
    needed = {name: shape for name, shape in expected.items() if not name.endswith(COUNTER)}
    own = {name: shape for name, shape in given.items() if not name.endswith(COUNTER)}
    Fit.of(needed, own, ignore=lambda name: name.split(".")[0] in heads).require(
        f"{settings.key}.pretrained={settings.pretrained}",
        f"the tower {settings.name}",
        f"Give weights of this tower, or set {settings.key}.name and {settings.key}.options to the tower of the "
        "weights.",
    )


def _heads(settings: ImageTowerConfig) -> set[str]:
    """Returns the names of the modules that belong to a classifier."""
    known = timm.get_pretrained_cfg(settings.name)
    names = (known and known.classifier) or ()
    return _HEADS | {name.split(".")[0] for name in ((names,) if isinstance(names, str) else names)}


def _activation(model: Any, settings: ImageTowerConfig, written: Iterable[str]) -> str | None:
    """Returns a remark for the user if the weights need the activation QuickGELU, but the tower computes GELU.

    The weights of OpenAI's CLIP were trained with QuickGELU. Weights for GELU have the same names and shapes. So the
    function searches for words such as "openai" in the name and notes of the model, and in the texts `written`. The
    result is None if it finds none.
    """
    if "clip" not in settings.name or any(type(module).__name__ == "QuickGELU" for module in model.modules()):
        return None
    notes = model.pretrained_cfg.get("notes") or ()
    texts = (settings.name, *((notes,) if isinstance(notes, str) else notes), *written)
    if not any(map(_QUICK_GELU.search, texts)):
        return None
    name = settings.name.split(".")[0].replace("_clip_", "_clip_quickgelu_")
    cure = f"; set {settings.key}.name={name}" if timm.is_model(name) else ""
    return (
        f"{settings.key}.pretrained: these weights look like those of OpenAI's CLIP, which were trained with "
        f"QuickGELU, but {settings.name} computes GELU, and its vectors differ from the original's{cure}"
    )


def _checked(model: Any, settings: ImageTowerConfig) -> Any:
    """Checks that this project can train the model, and returns it.

    If the settings name pretrained weights, the batch norm of the result is frozen.

    Raises:
        ConfigError: If `patch_dropout` is set but the model has no patch dropout, if the size of the image is not a
            multiple of the patch size, or if the model has batch norm that is not frozen.
    """
    _check_patch_dropout(model, settings)
    _check_pixels(model, settings)
    # This depends on the settings alone. So the tower of a checkpoint, which is built without pretrained weights, has
    # the same modules and names.
    if settings.pretrained is not None:
        model = freeze_batch_norm_2d(model)
    if any(isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d) for each in model.modules()):
        # Batch norm uses the statistics of one rank's rows, so the loss would depend on the number of ranks.
        raise ConfigError(
            f"{settings.key}: {settings.name} has batch norm, with which the loss would depend on the number of ranks; "
            "take a tower with layer norm (vit, convnext), or a convolutional one with pretrained weights, whose "
            "statistics are then kept as they are."
        )
    return model


def _check_patch_dropout(model: nn.Module, settings: ImageTowerConfig) -> None:
    if settings.patch_dropout and isinstance(getattr(model, "patch_drop", nn.Identity()), nn.Identity):
        raise ConfigError(f"{settings.key}.patch_dropout: {settings.name} has no patch dropout; set it to 0.")


def _check_pixels(model: nn.Module, settings: ImageTowerConfig) -> None:
    """Checks that whole patches cover the image. Otherwise timm would silently cut off its right and lower edge.

    Raises:
        ConfigError: If `pixels` is not a multiple of the patch size.
    """
    side, _ = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if settings.pixels % side:
        nearest = max(1, round(settings.pixels / side)) * side
        raise ConfigError(
            f"model.image.pixels={settings.pixels} is not a multiple of the patch size {side}; the nearest one is "
            f"{nearest}."
        )
