"""A random square crop -> 224 x 224, by several libraries: `... resizers FOLDER ROUNDS` prints JSON.

FOLDER holds a folder of JPEG files for each size. Pillow's bicubic filter, which widens when it makes smaller, is what
the others are compared with.
"""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import torch_vision  # noqa: F401 - before torchvision
from .decoders import pillow, seconds_each

SIDE = 224
Box = tuple[int, int, int, int]  # left, top, right, bottom
Resize = Callable[[np.ndarray, Box], np.ndarray]


def by_pillow(image: np.ndarray, box: Box) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def by_pillow_bilinear(image: np.ndarray, box: Box) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def by_pillow_reduced(image: np.ndarray, box: Box) -> np.ndarray:
    """First by a whole factor, as far as twice the size in the end allows."""
    kind = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), kind, box=box, reducing_gap=2.0))


def by_open_cv(name: str) -> Resize:
    def resize(image: np.ndarray, box: Box) -> np.ndarray:
        import cv2

        cv2.setNumThreads(1)
        left, top, right, bottom = box
        return cv2.resize(image[top:bottom, left:right], (SIDE, SIDE), interpolation=getattr(cv2, name))

    return resize


def by_torchvision(image: np.ndarray, box: Box) -> np.ndarray:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as f

    left, top, right, bottom = box
    picture = torch.from_numpy(image).permute(2, 0, 1)
    bicubic = InterpolationMode.BICUBIC
    small = f.resized_crop(picture, top, left, bottom - top, right - left, [SIDE, SIDE], bicubic, antialias=True)
    return small.permute(1, 2, 0).numpy()


CONTENDERS: dict[str, tuple[Resize, str]] = {
    "Pillow, bicubic": (by_pillow, "pillow"),
    "Pillow, bicubic, reducing gap": (by_pillow_reduced, "pillow"),
    "Pillow, bilinear": (by_pillow_bilinear, "pillow"),
    "OpenCV, area": (by_open_cv("INTER_AREA"), "opencv-python-headless"),
    "OpenCV, cubic (aliases)": (by_open_cv("INTER_CUBIC"), "opencv-python-headless"),
    "torchvision v2, bicubic": (by_torchvision, "torchvision"),
}


def main() -> None:
    torch.set_num_threads(1)
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    answers = [each for size in sorted(folder.iterdir(), key=lambda path: int(path.name)) for each in of_size(size, rounds)]
    sys.stdout.write(json.dumps(answers))


def of_size(folder: Path, rounds: int) -> list[dict[str, Any]]:
    images = [pillow()(path.read_bytes()) for path in sorted(folder.glob("*.jpg"))]
    work = [(image, _box(image, number)) for number, image in enumerate(images)]
    truth = [by_pillow(*each) for each in work]
    found = [{"contender": name, "pixels": int(folder.name)} | _probe(name, work, truth) for name in CONTENDERS]
    working = [each for each in found if "skipped" not in each]
    for number in range(rounds):
        first = number % len(working)
        for each in working[first:] + working[:first]:
            resize = CONTENDERS[each["contender"]][0]
            each.setdefault("seconds", []).append(seconds_each(lambda pair, resize=resize: resize(*pair), work))
    return found


def _box(image: np.ndarray, number: int) -> Box:
    """A square of half the shorter side or more, as in training."""
    random = np.random.default_rng(number)
    height, width = image.shape[:2]
    side = round(min(height, width) * random.uniform(0.5, 1.0))
    left, top = (int(random.integers(0, extent - side + 1)) for extent in (width, height))
    return left, top, left + side, top + side


def _probe(name: str, work: Sequence[tuple[np.ndarray, Box]], truth: Sequence[np.ndarray]) -> dict[str, Any]:
    resize, package = CONTENDERS[name]
    try:
        apart = [np.abs(resize(*each).astype(int) - right) for each, right in zip(work, truth, strict=True)]
        versions = {package: version(package)}
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the record says what
        return {"skipped": f"{type(error).__name__}: {error}"[:160], "versions": {}}
    mean = float(np.mean([each.mean() for each in apart]))
    return {"greatest_difference": int(max(each.max() for each in apart)), "mean_difference": mean, "versions": versions}


if __name__ == "__main__":
    main()
