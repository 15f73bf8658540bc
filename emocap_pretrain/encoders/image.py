"""The image tower: a timm model that gives one vector for the image and one for each patch."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from emocap_pretrain.config.schema import ImageTower as Settings
from emocap_pretrain.encoders import torchvision_ops
from emocap_pretrain.errors import ConfigError

torchvision_ops.install()
import timm  # noqa: E402 - after torchvision_ops


class ImageTower(nn.Module):
    """Faces in 8 bits -> (pooled, patches), both of the tower's own width."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.backbone: Any = _create(settings)
        self.width: int = self.backbone.num_features
        self.prefix_tokens: int = getattr(self.backbone, "num_prefix_tokens", 0)
        statistics = self.backbone.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches width"]]:
        if images.shape[0] == 0:  # Every parameter takes part on every rank, also on one without rows.
            pooled, patches = self(images.new_zeros((1, *images.shape[1:])))
            return pooled[:0], patches[:0]
        features = self.backbone.forward_features((images.to(self.mean.dtype) - self.mean) / self.std)
        pooled = self.backbone.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # A convolutional tower: its last map's cells are the patches.
            return pooled, features.flatten(2).transpose(1, 2)
        return pooled, features[:, self.prefix_tokens :]


def _create(settings: Settings) -> Any:
    options: dict[str, Any] = dict(settings.options)
    if settings.name.startswith(("vit_", "deit", "eva", "beit")):
        options["img_size"] = settings.pixels
    if settings.patch_dropout:
        options["patch_drop_rate"] = settings.patch_dropout
    local = settings.pretrained is not None and settings.pretrained != "hub"
    overlay = {"file": str(_weights(str(settings.pretrained)))} if local else None
    try:
        model = timm.create_model(
            settings.name,
            pretrained=settings.pretrained is not None,
            pretrained_cfg_overlay=overlay,
            num_classes=0,
            **options,
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"model.image: timm refuses {settings.name!r}: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error
    _check_patch_dropout(model, settings)
    _check_widths(model, settings)
    _check_pixels(model, settings)
    return model


def _weights(path: str) -> Path:
    """Only safetensors: other formats are unpickled, and a file from elsewhere could run code."""
    if not path.endswith(".safetensors") or not Path(path).is_file():
        raise ConfigError(f"model.image.pretrained={path}: give 'hub' or an existing .safetensors file.")
    return Path(path)


def _check_patch_dropout(model: nn.Module, settings: Settings) -> None:
    if settings.patch_dropout and isinstance(getattr(model, "patch_drop", nn.Identity()), nn.Identity):
        raise ConfigError(f"model.image.patch_dropout: {settings.name} has no patch dropout; set it to 0.")


def _check_widths(model: nn.Module, settings: Settings) -> None:
    """Some mobile towers widen the pooled vector only; one projection could not read both it and the patches."""
    pooled, patch = getattr(model, "head_hidden_size", None), model.num_features
    if pooled not in {None, patch}:
        raise ConfigError(
            f"model.image: {settings.name} pools to {pooled} numbers but has {patch} for a patch; take another tower."
        )


def _check_pixels(model: nn.Module, settings: Settings) -> None:
    """A remainder would be cut off the right and lower edge without a word."""
    side, _ = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if settings.pixels % side:
        nearest = max(1, round(settings.pixels / side)) * side
        raise ConfigError(
            f"model.image.pixels={settings.pixels} is no multiple of the patch size {side}; the nearest is {nearest}."
        )
