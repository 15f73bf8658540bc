"""Changes the colours and the sharpness of training images at random, and covers parts of them.

The changes imitate what happens to photographs, in this order: light and colour, blur, a low resolution, compression,
and something that covers a part of the face. `transform.augment` crops, rotates and mirrors images before.

All random numbers of a sample are drawn at once from (seed, epoch, sample index), and each change has numbers of its
own (decision 2). So the changes are the same on any rank, in any loader process and in any attempt, and switching one
change on or off does not alter another one. Pillow and libjpeg-turbo do the work, because they need no import of
torchvision in each loader process.
"""

import math
import re
from typing import TypeVar

import numpy as np
import simplejpeg
from emocap_shards.sample import Caption
from jaxtyping import Float64, UInt8
from PIL import Image, ImageFilter

from emocap_pretrain.config.augmentation import AugmentConfig, ChangeConfig, ColourConfig
from emocap_pretrain.data.transform import resized

Pixels = UInt8[np.ndarray, "pixels pixels 3"]
# Each change has a row of numbers. The first number of a row decides whether the image is changed, the others how. A
# new change gets a row at the end, so that the numbers of the other changes stay the same.
Numbers = Float64[np.ndarray, "changes draws"]
ROTATION, COLOUR, GREYSCALE, BLUR, RESOLUTION, JPEG, ERASING = range(7)
_CHANGES, _DRAWS = 7, 5

_LUMA = np.array([0.299, 0.587, 0.114])
# Luma and two axes of colour (NTSC). A rotation of the plane of both axes changes the hue and keeps the luma.
_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)

# Some of the words also have other meanings. An image with such a caption only loses a change. The action units 55 and
# 56 are a head that tilts to the left and to the right.
_TILT = re.compile(r"\b(?:tilt|lean|inclin|cock)\w*\b|\bupright\b|\b(?:AU|M)\s?5[56][A-E]?\b", re.IGNORECASE)
_COLOUR = re.compile(
    r"\b(?:flush|blush|redd|pallid|pallor|pale|paling|rosy|ruddy|pink|crimson|purpl|ashen|bloodshot|bruis|tann|"
    r"complexion|colou?r|discolou?r)\w*\b|\b(?:red|grey|gray|blue|green|brown|black|yellow)\b",
    re.IGNORECASE,
)

Change = TypeVar("Change", bound=ChangeConfig)


def random_numbers(key: tuple[int, int, int]) -> Numbers:
    """Returns the random numbers in [0, 1) for all changes of one sample; `key` is (seed, epoch, sample index)."""
    # The spawn key keeps these numbers apart from those that `transform.augment` draws from the same key.
    sequence = np.random.SeedSequence(key, spawn_key=(1,))
    return np.random.default_rng(sequence).random((_CHANGES, _DRAWS))


def rotation_degrees(settings: AugmentConfig, numbers: Numbers, caption: Caption | None) -> float:
    """Returns by how many degrees an image is rotated counterclockwise; 0 leaves it as it is.

    An image whose caption speaks of a tilted head is not rotated, because the rotation could make the caption wrong.
    """
    rotation = _chosen(settings.rotation, numbers[ROTATION])
    if rotation is None or (caption and _mentions(_TILT, caption)):
        return 0.0
    return rotation.degrees * (2 * float(numbers[ROTATION, 1]) - 1)


def changed(
    image: Pixels, settings: AugmentConfig, numbers: Numbers, caption: Caption | None, *, detail_px: int
) -> Pixels:
    """Returns the image after all changes except the rotation.

    If the caption names a colour, the image keeps its colours, and only its brightness and contrast change.

    Args:
        image: The cropped image, at the size that the tower reads. It is not written to.
        settings: The probability and the range of each change.
        numbers: The result of `random_numbers`.
        caption: The caption with which the image is trained.
        detail_px: The side of the stored image, or of `image` if that is smaller. A share of resolution refers to it.
    """
    image = np.ascontiguousarray(image)
    colour, grey = _chosen(settings.colour, numbers[COLOUR]), _chosen(settings.greyscale, numbers[GREYSCALE])
    if colour or grey:
        coloured = caption is not None and _mentions(_COLOUR, caption)
        image = _recoloured(image, colour, numbers[COLOUR], grey=grey is not None, keeps_hue=coloured)
    if blur := _chosen(settings.blur, numbers[BLUR]):
        image = _blurred(image, _between(blur.sigma, numbers[BLUR, 1]) * len(image))
    if resolution := _chosen(settings.resolution, numbers[RESOLUTION]):
        small = max(1, round(detail_px * _between(resolution.share, numbers[RESOLUTION, 1])))
        image = np.ascontiguousarray(resized(resized(image, small), len(image)))
    if jpeg := _chosen(settings.jpeg, numbers[JPEG]):
        image = _compressed(image, round(_between(jpeg.quality, numbers[JPEG, 1])))
    if erasing := _chosen(settings.erasing, numbers[ERASING]):
        image = _erased(image, _between(erasing.area, numbers[ERASING, 1]), numbers[ERASING, 2:])
    return image


def _chosen(change: Change | None, row: Float64[np.ndarray, " draws"]) -> Change | None:
    """Returns the settings of a change if the image gets it; otherwise None."""
    return change if change and row[0] < change.probability else None


def _mentions(words: re.Pattern[str], caption: Caption) -> bool:
    return any(words.search(text) for text in (caption.global_, *caption.local, caption.summary))


def _between(bounds: tuple[float, float], number: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(number)


def _recoloured(
    image: Pixels, colour: ColourConfig | None, row: Float64[np.ndarray, " draws"], *, grey: bool, keeps_hue: bool
) -> Pixels:
    """Changes brightness, contrast, saturation and hue together: each pixel is multiplied by one matrix.

    So the values are rounded and clipped only once.
    """
    brightness = contrast = saturation = 1.0
    turns = 0.0
    if colour:
        strengths = (colour.brightness, colour.contrast, colour.saturation)
        brightness, contrast, saturation = (
            _between((1 - strength, 1 + strength), number) for strength, number in zip(strengths, row[1:4], strict=True)
        )
        turns = _between((-colour.hue, colour.hue), row[4])
    if grey:
        saturation = 0.0
    if keeps_hue:
        saturation, turns = 1.0, 0.0
    # Saturation and hue act on the plane of colour alone: grey stays grey, so the order of the steps does not matter.
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    plane = np.array([[1, 0, 0], [0, saturation * cos, -saturation * sin], [0, saturation * sin, saturation * cos]])
    matrix = brightness * contrast * (_RGB @ plane @ _YIQ)
    picture = Image.fromarray(image)
    # Contrast is the distance from the mean luma of the image, after the change of brightness. A histogram gives the
    # mean in a tenth of the time that numpy takes for the mean of bytes.
    mean_luma = np.average(np.arange(256), weights=picture.convert("L").histogram()) if contrast != 1 else 0.0
    offset = (1 - contrast) * brightness * float(mean_luma)
    coefficients = np.column_stack([matrix, np.full(3, offset)]).ravel().tolist()
    return np.asarray(picture.convert("RGB", tuple(coefficients)))


def _blurred(image: Pixels, sigma_px: float) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)))


def _compressed(image: Pixels, quality: int) -> Pixels:
    return simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420"))


def _erased(image: Pixels, area: float, numbers: Float64[np.ndarray, " 3"]) -> Pixels:
    """Covers a rectangle with the mean colour of the image. Its sides have a ratio between 1:2 and 2:1."""
    side = len(image)
    ratio = math.exp(_between((-math.log(2), math.log(2)), numbers[0]))
    height, width = (min(side, max(1, round(side * math.sqrt(area * each)))) for each in (ratio, 1 / ratio))
    top, left = (int(number * (side - extent + 1)) for number, extent in zip(numbers[1:], (height, width), strict=True))
    covered = image.copy()
    # A box filter that leaves one pixel computes the mean colour.
    covered[top : top + height, left : left + width] = Image.fromarray(image).resize((1, 1), Image.Resampling.BOX)
    return covered
