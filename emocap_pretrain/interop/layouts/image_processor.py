"""Reads how images become the input of a model of transformers, from the settings of its image processor.

The settings lie in preprocessor_config.json or, as the entry `image_processor`, in processor_config.json. They are not
trusted: only the classes in `_PLAIN` and ConvNeXt's class are built, and only with numbers and flags. These classes
fill in the values that a file leaves out.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import emocap_torchvision
from emocap_pretrain.config.fields import ImageCrop
from emocap_pretrain.data.transform import Resize, ResizeFilter
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts.layout import Tree, Triple
from emocap_pretrain.model.json_files import read_json
from emocap_pretrain.model.transformers_loading import WRONG_NUMBERS

emocap_torchvision.install()
import transformers  # noqa: E402 - after emocap_torchvision

LARGEST_SIDE = 1024  # Larger images of a stranger could need much memory and time.
_FILES = ("preprocessor_config.json", "processor_config.json")
# These classes resize an image and may then crop its centre. That of DINOv3 resizes numbers that are not rounded.
_PLAIN = frozenset(
    f"{name}ImageProcessor"
    for name in (
        "Beit",
        "Bit",
        "Blip",
        "ChineseCLIP",
        "CLIP",
        "DeiT",
        "DINOv3ViT",
        "EfficientNet",
        "Flava",
        "MobileNetV1",
        "MobileNetV2",
        "OwlViT",
        "Segformer",
        "Siglip",
        "ViT",
    )
)
# Below this side, ConvNeXt's class cuts off a margin; from it on, it stretches the whole image.
_CONVNEXT, _CONVNEXT_WHOLE = "ConvNextImageProcessor", 384
_KEYS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "crop_pct",
    "do_rescale",
    "rescale_factor",
    "rescale_offset",
    "do_normalize",
    "include_top",
    "image_mean",
    "image_std",
)
_FILTERS: dict[int, ResizeFilter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers.


@dataclass(frozen=True, slots=True)
class ImagePreparation:
    """Says how an image becomes the input of a model.

    Attributes:
        pixels: Side of the square that the model reads.
        crop: The part of an image that is resized.
        resize: How this part is resized.
        mean: Mean of the 8-bit values of each colour channel, which is subtracted.
        std: Standard deviation of these values, by which the result is divided.
    """

    pixels: int
    crop: ImageCrop
    resize: Resize
    mean: Triple
    std: Triple


def processor_settings(folder: Path, where: str) -> Tree:
    """Returns the settings of the image processor in a folder; an empty mapping if there are none.

    Raises:
        ConfigError: If a file cannot be read.
    """
    for name in _FILES:
        if (folder / name).is_file():
            tree = read_json(folder / name, where)
            found = tree.get("image_processor", {}) if name == _FILES[1] else tree
            if isinstance(found, dict) and found:
                return cast("Tree", found)
    return {}


def filter_of(settings: Tree) -> ResizeFilter:
    """Returns the filter that the settings of an image processor name; the bicubic one if they name none that is known.

    `settings` is the result of `processor_settings`.
    """
    number = settings.get("resample")
    return _FILTERS.get(number, "bicubic") if isinstance(number, int) else "bicubic"


def read_preparation(folder: Path, where: str) -> ImagePreparation:
    """Returns how images become the input of the model in a folder.

    Args:
        folder: The folder.
        where: First words of an error message: the argument that names the model, and its value.

    Raises:
        ConfigError: If the folder does not say it, or says it in a way that this project cannot follow, for example
            because images keep their own size.
    """
    tree = processor_settings(folder, where)
    if not tree:
        raise ConfigError(
            f"{where}: the folder has no {_FILES[0]}, which says how images are resized and normalized: save the "
            "model's image processor into it."
        )
    name = _class_of(tree)
    if name not in {*_PLAIN, _CONVNEXT}:
        raise ConfigError(f"{where}: the image processor {name[:60]!r} cannot be followed.")
    given = {key: tree[key] for key in _KEYS if tree.get(key) is not None}
    try:
        processor: Any = getattr(transformers, name)(**given)
        pixels, crop, side = _convnext_sizes(processor) if name == _CONVNEXT else _sizes(processor)
        sides, resize = (pixels, side), Resize(_FILTERS[int(processor.resample)], None if side == pixels else side)
        mean, std = _statistics(processor)
    except WRONG_NUMBERS as error:
        first = " ".join(str(error).split())[:120]
        raise ConfigError(f"{where}: the settings of the image processor cannot be followed ({first}).") from error
    if not all(type(each) is int and 1 <= each <= LARGEST_SIDE for each in sides) or pixels > side:
        raise ConfigError(f"{where}: the image processor asks for images of {str(sides)[:60]} pixels.")
    if not all(map(math.isfinite, (*mean, *std))) or 0 in std:
        raise ConfigError(f"{where}: image_mean={mean} and image_std={std} cannot normalize an image.")
    return ImagePreparation(pixels, crop, resize, mean, std)


def _class_of(tree: Tree) -> str:
    """Returns the name of the image processor's class without the words that only name its implementation."""
    name = str(tree.get("image_processor_type") or tree.get("feature_extractor_type") or "of no name")
    return name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")


def _sizes(processor: Any) -> tuple[int, ImageCrop, int]:
    """Returns the side of the input, the part of an image that is resized, and the side to which it is resized.

    Raises:
        ValueError: If the input is not a square of a fixed size.
    """
    size = processor.size
    if not processor.do_resize:
        raise ValueError("do_resize is false, so images keep their own size")
    if getattr(processor, "do_pad", None) or size.longest_edge:
        raise ValueError("images keep their proportions")
    crop: ImageCrop = "center" if size.shortest_edge else "whole"
    side = size.shortest_edge or size.height
    if crop == "whole" and size.height != size.width:
        raise ValueError(f"images of {size.height} x {size.width} pixels are no squares")
    if not processor.do_center_crop:
        if crop == "center":
            raise ValueError("images keep their proportions")
        return side, crop, side
    if processor.crop_size.height != processor.crop_size.width:
        raise ValueError("crop_size is no square")
    return processor.crop_size.height, crop, side


def _convnext_sizes(processor: Any) -> tuple[int, ImageCrop, int]:
    """Returns the same as `_sizes`, for ConvNeXt's class."""
    pixels = processor.size.shortest_edge
    if not processor.do_resize or not pixels:
        raise ValueError("images keep their own size")
    return (
        (pixels, "center", int(pixels / processor.crop_pct))
        if pixels < _CONVNEXT_WHOLE
        else (
            pixels,
            "whole",
            pixels,
        )
    )


def _statistics(processor: Any) -> tuple[Triple, Triple]:
    """Returns mean and standard deviation of 8-bit values.

    The processor multiplies these values by a factor, may subtract 1, and then normalizes. EfficientNet's class may
    divide by the standard deviation once more.
    """
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    offset = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    normalizes = bool(processor.do_normalize)
    mean = [float(each) for each in processor.image_mean] if normalizes else [0.0] * 3
    std = [float(each) for each in processor.image_std] if normalizes else [1.0] * 3
    if getattr(processor, "include_top", False):
        std = [each * float(again) for each, again in zip(std, processor.image_std, strict=True)]
    red, green, blue = ((each + offset) / factor for each in mean)
    wide = [each / factor for each in std]
    return (red, green, blue), (wide[0], wide[1], wide[2])
