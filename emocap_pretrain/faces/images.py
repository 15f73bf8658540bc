"""Opens the images in which faces are looked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from emocap_pretrain.bulk.inputs import BulkInput, open_input
from emocap_pretrain.bulk.pictures import Cropper, Picture
from emocap_pretrain.captions.ferplus.tables import PublishedImages, read_fer2013
from emocap_pretrain.data.videos import Sampling


def open_images(source: str, *, image: str = "image", image_root: Path | None = None) -> BulkInput:
    """Opens an input (`open_input`), or a table with a column of pixels, such as fer2013.csv, which holds its images.

    Raises:
        ConfigError: If there is nothing that can be read.
        DataError: If a table of pixels is not one.
        ShardsError: If the dataset, the table or the folder cannot be read.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if "pixels" in file.readline(1 << 16).lower():
                stamp = f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
                return PixelTableInput(read_fer2013(path), digest=stamp)
    return open_input(source, image=image, image_root=image_root)


@dataclass(frozen=True, slots=True, eq=False)
class PixelTableInput:
    """Provides the images of a table of pixels; their names are those of its rows (`PublishedImages.rows`)."""

    images: PublishedImages
    numbers: range | None = None
    digest: str = ""
    has_videos: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def _numbers(self) -> range:
        return range(len(self.images.rows)) if self.numbers is None else self.numbers

    def weights(self) -> Iterator[int]:
        return (1 for _ in self._numbers)

    def slice(self, start: int, stop: int) -> "PixelTableInput":
        return replace(self, numbers=self._numbers[start:stop], digest="")

    def pictures(self, cropper: Cropper, sampling: Sampling) -> Iterator[Picture]:  # noqa: ARG002 - the whole images
        for number in self._numbers:
            grey = self.images.images[number]
            yield Picture(self.images.rows[number], np.repeat(grey[..., None], 3, axis=2))
