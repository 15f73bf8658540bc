"""Defines the settings of random changes of training images. All of them are off by default.

A setting is in a section of its own, because each change has a probability and a range. The defaults of the ranges are
mild: an expression is a matter of small shapes, and a change that hides them would train the model on wrong pairs.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from emocap_pretrain.config.fields import Fraction, Section


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"[{bounds[0]}, {bounds[1]}] is not a range: the first number must not exceed the second.")
    return bounds


Share = Annotated[float, Field(gt=0, le=1)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
Quality = Annotated[float, Field(ge=1, le=100)]
QualityRange = Annotated[tuple[Quality, Quality], AfterValidator(_ascending)]
Strength = Annotated[float, Field(ge=0, lt=1)]


class ChangeConfig(Section):
    """Base class of the settings of one random change of an image."""

    probability: Fraction = Field(default=0.0, description="Probability that an image is changed.")


class RotationConfig(ChangeConfig):
    """Configures rotations of the crop about its centre."""

    probability: Fraction = Field(default=0.5, description="Probability that an image is rotated.")
    degrees: Annotated[float, Field(gt=0, le=45)] = Field(
        default=10.0, description="Largest angle, in both directions; people tilt their heads by about as much."
    )


class ColourConfig(ChangeConfig):
    """Configures the change of light and colour. A strength s is a random factor between 1 - s and 1 + s."""

    probability: Fraction = Field(default=0.8, description="Probability that light and colour are changed.")
    brightness: Strength = Field(
        default=0.2, description="Strength of the change of brightness. A larger one makes light skin white."
    )
    contrast: Strength = Field(default=0.2, description="Strength of the change of contrast.")
    saturation: Strength = Field(default=0.2, description="Strength of the change of saturation.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.02,
        description="Largest rotation of the colours, in turns. A larger one gives faces a colour that no light gives.",
    )


class GreyscaleConfig(ChangeConfig):
    """Configures the loss of all colour."""

    probability: Fraction = Field(
        default=0.1, description="Probability that an image becomes grey, as those of FER2013 and old films are."
    )


class BlurConfig(ChangeConfig):
    """Configures blur, as of a lens out of focus."""

    probability: Fraction = Field(default=0.1, description="Probability that an image is blurred.")
    sigma: ShareRange = Field(
        default=(0.002, 0.008),
        description="Range of the standard deviation of the Gaussian, as a share of the image side. A stronger blur "
        "removes the wrinkles that action units make.",
    )


class ResolutionConfig(ChangeConfig):
    """Configures the loss of resolution: the image is made small, and then large again."""

    probability: Fraction = Field(default=0.3, description="Probability that an image loses resolution.")
    share: ShareRange = Field(
        default=(0.3, 0.9),
        description="Range of the side that the small image has, as a share of the stored or the trained side, "
        "whichever is smaller. Faces in the wild are often 50 pixels wide.",
    )


class JpegConfig(ChangeConfig):
    """Configures the compression as JPEG with a low quality."""

    probability: Fraction = Field(default=0.2, description="Probability that an image is compressed.")
    quality: QualityRange = Field(default=(35, 90), description="Range of libjpeg's quality.")


class ErasingConfig(ChangeConfig):
    """Configures a rectangle of one colour that covers a part of the image, as a hand or a mask does."""

    probability: Fraction = Field(default=0.2, description="Probability that a rectangle is erased.")
    area: ShareRange = Field(
        default=(0.02, 0.1),
        description="Range of the share of the image that is erased. A larger rectangle hides what captions describe.",
    )


class AugmentConfig(Section):
    """Configures random changes of training images, in addition to `data.crop` and `data.flip`.

    null leaves a change out, and {} takes its defaults. Evaluations change no image.
    """

    rotation: RotationConfig | None = Field(
        default=None,
        description="Rotation. An image whose English caption speaks of a tilted head is not rotated.",
    )
    colour: ColourConfig | None = Field(
        default=None,
        description="Light and colour. If an English caption names a colour (flushed, pale), only "
        "brightness and contrast change.",
    )
    greyscale: GreyscaleConfig | None = Field(
        default=None,
        description="Loss of colour. An image whose English caption names a colour keeps its colours.",
    )
    blur: BlurConfig | None = Field(default=None, description="Blur.")
    resolution: ResolutionConfig | None = Field(default=None, description="Loss of resolution.")
    jpeg: JpegConfig | None = Field(default=None, description="Compression.")
    erasing: ErasingConfig | None = Field(
        default=None,
        description="A rectangle with the mean colour of the image. With objective.patch_mask, patches that it covers "
        "are left out of the local loss.",
    )
