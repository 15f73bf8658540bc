"""Measures how many images per second a model embeds, and how many its bare tower embeds from batches in memory.

All contenders use the same model. Its weights are random, because their values do not affect the time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios
from benchmarks.harness.rounds import per_second
from emocap_pretrain.config.model import ImageTowerConfig, TextArchitectureConfig, TextTowerConfig
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.inference.model import EmotionModel
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.model.transformers_text import TransformersTextTower

WHAT = "images embedded per second"
BARE = "bare tower"
# The side of the larger pictures, relative to the side that the tower reads. Faces in datasets are often a bit larger.
LARGER = 1.25


@dataclass(frozen=True, slots=True)
class ThroughputSize:
    """Holds the sizes of a measurement.

    Attributes:
        tower: Name of the image tower in timm.
        pixels: Side of the images that the tower reads.
        batch: Images of one pass.
        images: Images of one reading.
    """

    tower: str
    pixels: int
    batch: int
    images: int


def measure(size: ThroughputSize, device: str, rounds: int, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the images per second of the bare tower, and of the model from arrays and from JPEG files."""
    pair = _pair(size).to(device)
    model = EmotionModel(Embedder(pair, _tokenizer()))
    random = np.random.default_rng(0)
    ready = random.integers(0, 256, (size.images, size.pixels, size.pixels, 3), dtype=np.uint8)
    side = round(LARGER * size.pixels)
    larger = [np.asarray(Image.fromarray(each).resize((side, side))) for each in ready]
    with TemporaryDirectory() as folder:
        files = _written(larger, Path(folder))
        ways: dict[str, Callable[[], object]] = {
            BARE: lambda: _bare(pair, ready, size.batch, device),
            "arrays of the tower's size": lambda: model.embed_images(ready, batch_size=size.batch),
            f"arrays of {side} px": lambda: model.embed_images(larger, batch_size=size.batch),
            f"JPEG files of {side} px": lambda: model.embed_images(files, batch_size=size.batch),
        }
        taken = per_second(ways, size.images, rounds=rounds)
    for name, readings in taken.items():
        yield measured(
            occasion,
            readings,
            ratios=None if name == BARE else {f"over the {BARE}": ratios(readings, taken[BARE])},
            what=WHAT,
            contender=name,
            setting={"tower": size.tower, "pixels": size.pixels, "batch": size.batch, "images": size.images},
            unit="images/s",
            more={"threads": torch.get_num_threads()},
            versions=versions(("torch", "timm", "simplejpeg")),
        )


def _bare(pair: TowerPair, ready: UInt8[np.ndarray, "images pixels pixels 3"], batch: int, device: str) -> None:
    """Computes the vectors of all images with nothing but the tower and its projection."""
    with torch.inference_mode():
        for images in torch.from_numpy(ready).permute(0, 3, 1, 2).split(batch):
            pair.to_image(pair.image.encode_image(images.to(device))[0]).cpu()


def _written(pictures: Sequence[UInt8[np.ndarray, "side side 3"]], folder: Path) -> list[Path]:
    files = [folder / f"{number}.jpg" for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file, quality=90)
    return files


def _tokenizer() -> Tokenizer:
    return Tokenizer.trained_on(["a happy face"], 300)


def _pair(size: ThroughputSize) -> TowerPair:
    torch.manual_seed(0)
    image = TimmImageTower(ImageTowerConfig(name=size.tower, pixels=size.pixels))
    # No text is embedded here.
    settings = TextTowerConfig(architecture=TextArchitectureConfig(width=32, layers=1, heads=2))
    text = TransformersTextTower(settings, _tokenizer().vocabulary, weights=False)
    return TowerPair(image, text).eval()
