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

from emocap_pretrain.config.model import ImageTowerConfig
from emocap_pretrain.config.objective import TeacherConfig
from emocap_pretrain.model.pair import autocast
from emocap_pretrain.model.timm_image import TimmImageTower


class _TeacherTowerConfig(ImageTowerConfig):
    # `TimmImageTower` begins its error messages with this key, so that they name the setting that the user wrote.
    key: ClassVar[str] = "objective.teacher"


class Teacher(nn.Module):
    """Maps images to unit vectors with a frozen image tower.

    The teacher is not a part of the model that is trained. Every rank holds all of its weights, also at ZeRO stage 3.
    No checkpoint contains them: each attempt of the run loads them from the configured source, which must still exist.

    Attributes:
        settings: The settings of the tower, with the source of its weights.
    """

    def __init__(
        self, settings: TeacherConfig, *, pixels: int, precision: str = "fp32", rows_at_once: int | None = None
    ) -> None:
        """Builds the tower with random weights. The caller loads those of its source.

        Args:
            settings: Name and options of the tower, and the source of its weights.
            pixels: Side of the images.
            precision: `engine.precision`; "bf16" and "fp16" run the tower under autocast.
            rows_at_once: Largest number of images in one forward pass; None for no limit.

        Raises:
            ConfigError: If there is no such tower.
        """
        super().__init__()
        self.settings = teacher_tower(settings, pixels)
        self.tower = TimmImageTower(self.settings)
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
        with autocast(images.device, self._precision):
            pooled = [self.tower.encode_image(part)[0].float() for part in parts]
        return functional.normalize(torch.cat(pooled), dim=-1)


def teacher_tower(settings: TeacherConfig, pixels: int) -> ImageTowerConfig:
    """Returns the settings of a teacher's tower for images of this size."""
    tower = settings.model_dump(include={"name", "pretrained", "options"})
    return _TeacherTowerConfig.model_validate({**tower, "pixels": pixels})
