"""Defines the teacher: a frozen image tower from whose vectors the losses compute how similar two images are.

The `soft` objective uses these similarities. If a teacher is configured, the mining of positives also uses them to
compare images (docs/method.md section 1, decision 26). The teacher gets the same image tensors as the trained tower, so
a batch needs no second copy of the images.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from emocap_pretrain.config.objective import TeacherConfig
from emocap_pretrain.config.schema import ImageTowerConfig
from emocap_pretrain.model.timm_image import TimmImageTower, check_image_weights


class _TeacherTowerConfig(ImageTowerConfig):
    # `TimmImageTower` begins its error messages with this key, so that they name the setting that the user wrote.
    key: ClassVar[str] = "objective.teacher"


class Teacher(nn.Module):
    """Maps images to unit vectors with a frozen image tower.

    The teacher is not a part of the model that is trained. Every rank holds all of its weights, also at ZeRO stage 3.
    No checkpoint contains them: each attempt of the run loads them from the configured source, which must still exist.

    Attributes:
        notes: Remarks for the user on the weights, one line each.
    """

    def __init__(
        self,
        settings: TeacherConfig,
        *,
        pixels: int,
        precision: str = "fp32",
        rows_at_once: int | None = None,
        weights: bool = True,
    ) -> None:
        """Builds the tower.

        Args:
            settings: Name and options of the tower, and the source of its weights.
            pixels: Side of the images.
            precision: `engine.precision`; "bf16" runs the tower under autocast.
            rows_at_once: Largest number of images in one forward pass; None for no limit.
            weights: Whether the weights are loaded. If False, the weights are random, as for an estimate of memory.

        Raises:
            ConfigError: If there is no such tower, or the weights do not match it.
        """
        super().__init__()
        self.tower = TimmImageTower(_tower_settings(settings, pixels), weights=weights)
        self.notes = self.tower.notes
        self._precision, self._rows_at_once = precision, rows_at_once
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch width"]:
        """Returns the unit vectors of images, in float32 and without gradients.

        The result for an empty batch is empty. At ZeRO stage 3 a trained tower runs collectives in its forward pass;
        the teacher never does.
        """
        # `split` refuses a size of 0, and returns one empty part for an empty batch, so `torch.cat` has an argument.
        parts = images.split(self._rows_at_once or max(1, len(images)))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            pooled = [self.tower.encode_image(part)[0].float() for part in parts]
        return functional.normalize(torch.cat(pooled), dim=-1)


def check_teacher(settings: TeacherConfig | None, *, pixels: int) -> tuple[str, ...]:
    """Compares the pretrained weights of a teacher with its tower, by names and shapes. It reads no values of weights.

    Args:
        settings: The settings of the teacher. If None, nothing is compared.
        pixels: Side of the images.

    Returns:
        Remarks for the user on the weights, one line each.

    Raises:
        ConfigError: If a parameter has no weights or weights of another shape, or if weights belong to no parameter.
    """
    return check_image_weights(_tower_settings(settings, pixels)) if settings else ()


def _tower_settings(settings: TeacherConfig, pixels: int) -> ImageTowerConfig:
    tower = settings.model_dump(include={"name", "pretrained", "options"})
    return _TeacherTowerConfig.model_validate({**tower, "pixels": pixels})
