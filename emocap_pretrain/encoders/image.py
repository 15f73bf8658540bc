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
from timm.layers.norm_act import freeze_batch_norm_2d  # noqa: E402


class ImageTower(nn.Module):
    """Faces in 8 bits -> (pooled, patches), both of the tower's own width."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Settings, *, weights: bool = True) -> None:
        """Build the tower.

        Args:
            settings: Name, size, options of timm's, and where pretrained weights come from.
            weights: False leaves a pretrained tower at random values (a checkpoint overwrites them).
        """
        super().__init__()
        self.backbone: Any = _settled(_create(settings, weights), settings)
        self.width: int = self.backbone.num_features
        self.prefix_tokens: int = getattr(self.backbone, "num_prefix_tokens", 0)
        statistics = self.backbone.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches width"]]:
        if images.shape[0] == 0:  # Every parameter takes part on every rank, also on one without rows.
            # Not through the hooks of ZeRO stage 3, which must see the same modules on all ranks.
            pooled, patches = self.forward(images.new_zeros((1, *images.shape[1:])))
            return pooled[:0], patches[:0]
        features = self.backbone.forward_features((images.to(self.mean.dtype) - self.mean) / self.std)
        pooled = self.backbone.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # The cells of the last map are the patches.
            last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return pooled, features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
        return pooled, features[:, self.prefix_tokens :]


def _create(settings: Settings, weights: bool) -> Any:
    options: dict[str, Any] = dict(settings.options)
    if settings.name.startswith(("vit_", "deit", "eva", "beit")):
        options["img_size"] = settings.pixels
    if settings.patch_dropout:
        options["patch_drop_rate"] = settings.patch_dropout
    pretrained = weights and settings.pretrained is not None
    local = pretrained and settings.pretrained != "hub"
    overlay = {"file": str(_weights(str(settings.pretrained)))} if local else None
    try:
        return timm.create_model(
            settings.name, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=0, **options
        )
    except (RuntimeError, TypeError, ValueError, ArithmeticError, AssertionError, OSError) as error:
        raise ConfigError(
            f"model.image: timm refuses {settings.name!r}: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error


def _settled(model: Any, settings: Settings) -> Any:
    """The model, once it is one that this system can train."""
    _check_patch_dropout(model, settings)
    _check_widths(model, settings)
    _check_pixels(model, settings)
    if settings.pretrained is not None:
        model = freeze_batch_norm_2d(model)
    if any(isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d) for each in model.modules()):
        # Its statistics are of one rank's rows: the loss would depend on the number of ranks and on who holds which.
        raise ConfigError(
            f"model.image: {settings.name} has batch norm, with which the loss would depend on the number of ranks; "
            "take a tower with layer norm (vit, convnext), or a convolutional one with pretrained weights, whose "
            "statistics are then kept as they are."
        )
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
