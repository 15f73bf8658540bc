"""A random square crop -> 224 x 224, by several libraries: `... resizers FOLDER ROUNDS` prints JSON.

FOLDER holds a folder of JPEG files for each size. Pillow's bicubic filter, which widens when it makes smaller, is what
the others are compared with.
"""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnusedImport=false

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import torch_vision  # noqa: F401 - before torchvision
from .decoders import files, pillow
from .lineup import Way, answer

SIDE = 224
Box = tuple[int, int, int, int]  # left, top, right, bottom
Crop = tuple[np.ndarray, Box]
Resize = Callable[[Crop], np.ndarray]


def by_pillow(crop: Crop) -> np.ndarray:
    image, box = crop
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def by_pillow_bilinear(crop: Crop) -> np.ndarray:
    image, box = crop
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def by_pillow_reduced(crop: Crop) -> np.ndarray:
    """Resizes first by an integer factor, as long as twice the final size is left."""
    image, box = crop
    kind = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), kind, box=box, reducing_gap=2.0))


def by_open_cv(name: str) -> Resize:
    import cv2

    cv2.setNumThreads(1)

    def resize(crop: Crop) -> np.ndarray:
        image, box = crop
        left, top, right, bottom = box
        return cv2.resize(image[top:bottom, left:right], (SIDE, SIDE), interpolation=getattr(cv2, name))

    return resize


def by_torchvision(crop: Crop) -> np.ndarray:
    image, box = crop
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as f

    left, top, right, bottom = box
    picture = torch.from_numpy(image).permute(2, 0, 1)
    bicubic = InterpolationMode.BICUBIC
    small = f.resized_crop(picture, top, left, bottom - top, right - left, [SIDE, SIDE], bicubic, antialias=True)
    return small.permute(1, 2, 0).numpy()


WAYS: tuple[Way[Crop], ...] = (
    Way("Pillow, bicubic", lambda: by_pillow, "pillow"),
    Way("Pillow, bicubic, reducing gap", lambda: by_pillow_reduced, "pillow"),
    Way("Pillow, bilinear", lambda: by_pillow_bilinear, "pillow"),
    Way("OpenCV, area", lambda: by_open_cv("INTER_AREA"), "opencv-python-headless"),
    Way("OpenCV, cubic (aliases)", lambda: by_open_cv("INTER_CUBIC"), "opencv-python-headless"),
    Way("torchvision v2, bicubic", lambda: by_torchvision, "torchvision"),
)


def crops(folder: Path) -> list[Crop]:
    """Returns a square of each image with at least half its shorter side, as in training."""
    images = map(pillow(), files(folder))
    return [(image, _box(image, number)) for number, image in enumerate(images)]


def _box(image: np.ndarray, number: int) -> Box:
    random = np.random.default_rng(number)
    height, width = image.shape[:2]
    side = round(min(height, width) * random.uniform(0.5, 1.0))
    left, top = (int(random.integers(0, extent - side + 1)) for extent in (width, height))
    return left, top, left + side, top + side


if __name__ == "__main__":
    answer(WAYS, crops)
