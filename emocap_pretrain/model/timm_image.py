"""Builds image towers from models of timm, with one vector for the image and one for each patch.

`TimmImageTower` builds a tower. It can load pretrained weights, and then compares their names and shapes with those of
the tower. `check_image_weights` makes the same comparison before a run starts: it builds the tower on the device
"meta", and reads only the header of the file. Both call `_pretrained`, so that a dry run and a run refuse the same
weights with the same message.
"""

import inspect
import re
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

import emocap_torchvision
from emocap_pretrain.config.schema import ImageTowerConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.weights import Fit, Header, Shapes, before_load_state_dict, listed, shapes_of

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
_QUICK_GELU = re.compile(r"openai|quick.?gelu", re.IGNORECASE)


class TimmImageTower(nn.Module):
    """Implements `ImageTower` with a model of timm whose features are a sequence of tokens or a feature map.

    Attributes:
        mean: Mean of the 8-bit pixel values with which the model was trained, for each colour channel.
        std: Standard deviation of these values, for each colour channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ImageTowerConfig, *, weights: bool = True) -> None:
        """Builds the tower.

        Args:
            settings: Name, size and options of the model, and the source of pretrained weights.
            weights: Whether pretrained weights are loaded. False is for a tower that takes its weights from a
                checkpoint.

        Raises:
            ConfigError: If timm has no such model or refuses its options, if the model cannot be trained here
                (`_checked` lists the reasons), or if pretrained weights do not match it.
        """
        super().__init__()
        self.notes: tuple[str, ...]
        backbone, self.notes = _pretrained(settings) if weights and settings.pretrained else (_create(settings), ())
        self.backbone: Any = _checked(backbone, settings)
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


def check_image_weights(settings: ImageTowerConfig) -> tuple[str, ...]:
    """Compares the weights in `settings.pretrained` with the tower, by names and shapes. It reads no values of weights.

    A wrong file is thus refused before the ranks start. The tower is built on the device "meta", which needs almost no
    memory. Weights on the hub are not downloaded here; they are compared when the run starts.

    Returns:
        Remarks for the user on the weights, one line each.

    Raises:
        ConfigError: If a parameter has no weights or weights of another shape, or if weights belong to no parameter.
    """
    if settings.pretrained is None:
        return ()
    if settings.pretrained == "hub":
        return (f"{settings.key}.pretrained=hub: the weights are compared with the tower when the run starts",)
    with torch.device("meta"):
        return _pretrained(settings, empty=True)[1]


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


def _pretrained(settings: ImageTowerConfig, *, empty: bool = False) -> tuple[Any, tuple[str, ...]]:
    """Creates the model with pretrained weights, and returns it with remarks on the weights for the user.

    If `empty` is True, placeholders without values replace the weights of a file, so that only names and shapes are
    compared. The caller must then set "meta" as the device on which torch creates tensors.

    The names and shapes in a file may differ from those of timm's model, for example if another library wrote the file.
    timm converts them, and then calls `load_state_dict`. So the comparison is made when timm calls `load_state_dict`,
    with the converted names and shapes.
    """
    path = _weights(settings)
    header = Header.read([path], f"{settings.key}.pretrained") if path else None
    seen: list[Shapes] = []

    def check(expected: Shapes, given: Shapes) -> None:
        seen.append(given)
        _require(expected, given, settings)

    # timm strips prefixes of wrappers ("module.") from the names in a file, but not from those of a state dict.
    tensors = clean_state_dict(header.tensors(device="meta")) if header and empty else None
    overlay = {"state_dict": tensors} if tensors else {"file": str(path)}
    try:
        with before_load_state_dict(check):
            model = _create(settings, pretrained=True, pretrained_cfg_overlay=overlay if path else None)
    except (ConfigError, LookupError, AttributeError) as error:
        if header and not seen:  # timm has failed at an unexpected name before `check` could compare the names.
            with torch.device("meta"):
                _require(shapes_of(_create(settings).state_dict()), header.shapes, settings)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{settings.key}.pretrained: timm cannot convert these weights ({error!r}).") from error
    if not seen:
        raise ConfigError(
            f"{settings.key}.pretrained: timm loads the weights of {settings.name} with special code, so that it is "
            "unknown whether they fill the tower; give a .safetensors file."
        )
    # timm keeps the overlay in the model's config. The placeholders in it are not a part of the tower.
    model.pretrained_cfg.pop("state_dict", None)
    return model, (*_resized(header, seen[0], settings.key), *_activation(model, settings, path, header))


def _require(expected: Shapes, given: Shapes, settings: ImageTowerConfig) -> None:
    """Checks that the weights match the parameters of the tower. Weights of a classifier head are ignored.

    Args:
        expected: The shapes in the tower, by name.
        given: The shapes of the weights, by name.
        settings: The settings of the tower, for the message.

    Raises:
        ConfigError: If a parameter has no weights or weights of another shape, or if weights belong to no parameter.
    """
    known = timm.get_pretrained_cfg(settings.name)
    names = (known and known.classifier) or ()
    heads = _HEADS | {name.split(".")[0] for name in ((names,) if isinstance(names, str) else names)}
    # Batch norm counts its batches in this buffer, and frozen batch norm has none.
    needed = {name: shape for name, shape in expected.items() if not name.endswith(".num_batches_tracked")}
    own = {name: shape for name, shape in given.items() if not name.endswith(".num_batches_tracked")}
    Fit.of(needed, own, ignore=lambda name: name.split(".")[0] in heads).require(
        f"{settings.key}.pretrained={settings.pretrained}",
        f"the tower {settings.name}",
        f"Give weights of this tower, or set {settings.key}.name and {settings.key}.options to the tower of the "
        "weights.",
    )


def _resized(header: Header | None, loaded: Shapes, key: str) -> tuple[str, ...]:
    """Returns at most one remark for the user, which lists the tensors that timm has resized.

    For example, timm resizes position embeddings if the pretrained model was trained with images of another size. The
    function finds a resized tensor by its name, so it misses the tensors whose names timm has converted.

    Args:
        header: The names and shapes in the file; None if the weights come from the hub.
        loaded: The shapes of the weights after timm's conversion, by name.
        key: The key of the tower's settings, with which the remark begins.
    """
    before = header.shapes if header else {}
    names = sorted(name for name in before.keys() & loaded.keys() if before[name] != loaded[name])
    changes = [f"{name} {list(before[name])} to {list(loaded[name])}" for name in names]
    return (f"{key}.pretrained: timm has resized {listed(changes)}",) if changes else ()


def _activation(model: Any, settings: ImageTowerConfig, path: Path | None, header: Header | None) -> tuple[str, ...]:
    """Returns a remark for the user if the weights need the activation QuickGELU, but the tower computes GELU.

    The weights of OpenAI's CLIP were trained with QuickGELU. Weights for GELU have the same names and shapes. So the
    function searches for words such as "openai" in the name and notes of the model, and in the metadata and path of the
    file. The result is empty if it finds none.
    """
    if "clip" not in settings.name or any(type(module).__name__ == "QuickGELU" for module in model.modules()):
        return ()
    notes = model.pretrained_cfg.get("notes") or ()
    written = [
        settings.name,
        *((notes,) if isinstance(notes, str) else notes),
        *(header.metadata.values() if header else ()),
    ]
    # In the hub's cache the name of the weights is that of a folder two levels above the file.
    written += [path.name, *(folder.name for folder in list(path.parents)[:3])] if path else []
    if not any(map(_QUICK_GELU.search, written)):
        return ()
    name = settings.name.split(".")[0].replace("_clip_", "_clip_quickgelu_")
    cure = f"; set {settings.key}.name={name}" if timm.is_model(name) else ""
    note = (
        f"{settings.key}.pretrained: these weights look like those of OpenAI's CLIP, which were trained with "
        f"QuickGELU, but {settings.name} computes GELU, and its vectors differ from the original's{cure}"
    )
    return (note,)


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


def _weights(settings: ImageTowerConfig) -> Path | None:
    """Returns the file of the weights; None if they come from the hub.

    Only .safetensors files are allowed, because loading a pickle file can run code.
    """
    path = str(settings.pretrained)
    if path == "hub":
        return None
    if not path.endswith(".safetensors") or not Path(path).is_file():
        raise ConfigError(f"{settings.key}.pretrained={path}: give 'hub' or an existing .safetensors file.")
    return Path(path)


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
