"""A frozen image tower, whose vectors guide the losses: they say which images are alike."""

from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from emocap_pretrain.config.objective import TeacherConfig
from emocap_pretrain.config.schema import Config, ImageTowerConfig
from emocap_pretrain.model.timm_image import TimmImageTower, check_image_weights


class _TeacherTowerConfig(ImageTowerConfig):
    key: ClassVar[str] = "objective.teacher"


class Teacher(nn.Module):
    """Images -> unit vectors that nothing trains.

    It is not a part of the model: no checkpoint holds its weights, and every rank holds all of them.

    Attributes:
        notes: What a person should know of the weights, one line each.
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
            settings: Name, options, and where the weights come from.
            pixels: Side of the images.
            precision: `engine.precision`; "bf16" runs the tower under autocast.
            rows_at_once: Most images that are read together; None reads all.
            weights: False leaves the tower at random values, for an estimate.

        Raises:
            ConfigError: If there is no such tower, or the weights do not fill it.
        """
        super().__init__()
        self.tower = TimmImageTower(_tower_settings(settings, pixels), weights=weights)
        self.notes = self.tower.notes
        self._precision, self._rows_at_once = precision, rows_at_once
        self.requires_grad_(False).eval()

    @classmethod
    def of(cls, config: Config, *, rows_at_once: int | None = None, weights: bool = True) -> "Teacher | None":
        """Returns the teacher of a run; None where the run has none."""
        settings, pixels, precision = config.objective.teacher, config.model.image.pixels, config.engine.precision
        if settings is None:
            return None
        return cls(settings, pixels=pixels, precision=precision, rows_at_once=rows_at_once, weights=weights)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch width"]:
        parts = images.split(self._rows_at_once or max(1, len(images)))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            pooled = [self.tower.encode_image(part)[0].float() for part in parts]
        return functional.normalize(torch.cat(pooled), dim=-1)


def check_teacher(config: Config) -> tuple[str, ...]:
    """Compares the weights of a run's teacher with its tower by names and shapes; no weight is read.

    Returns:
        The teacher's notes.

    Raises:
        ConfigError: If the weights do not fill the tower.
    """
    settings = config.objective.teacher
    return check_image_weights(_tower_settings(settings, config.model.image.pixels)) if settings else ()


def _tower_settings(settings: TeacherConfig, pixels: int) -> ImageTowerConfig:
    tower = settings.model_dump(include={"name", "pretrained", "options"})
    return _TeacherTowerConfig.model_validate({**tower, "pixels": pixels})
