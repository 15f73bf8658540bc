"""Computes the patch vectors of a dataset once, and keeps them on disk as float16 beside the captions.

The image tower is frozen, so training reads the same vectors in each epoch. The vectors are written in parts of up to
`PART_IMAGES` images. Each rank computes every `world_size`-th part that is missing, and the content of a part does not
depend on who computes it. A part exists only when it is complete, so an interruption costs one part. The files are
mapped into memory. So only the captions, and not the vectors, need memory that grows with the dataset.
"""

import hashlib
import json
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from emocap_shards.manifest import read_manifest
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from jaxtyping import Float, Float16
from torch import Tensor

from emocap_pretrain.bulk.new_file import writing_to
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.data.transform import channels_first
from emocap_pretrain.errors import ConfigError, DataError
from emocap_pretrain.evaluation.examples import Example, ExampleSource, PackedSource
from emocap_pretrain.generation.projector import pooled_to
from emocap_pretrain.inference.embedder import Crop, Embedder
from emocap_pretrain.inference.images import READERS, UNREADABLE, reason
from emocap_pretrain.ranks.group import ALONE, RankGroup

PART_IMAGES = 1024
BATCH = 64
SCHEMA = 2
_LARGEST = 65504.0  # Of float16.


@dataclass(frozen=True, slots=True)
class PatchSettings:
    """Says which texts, patches and persons are read from a dataset.

    Attributes:
        part: The name of the caption part (`Part`) that the captioner learns to write. If a caption has several texts
            of this part, they are joined with spaces.
        image_tokens: Largest number of patch vectors of an image, a square number. If the tower has more patches, their
            vectors are averaged over cells of their grid (`pooled_to`).
        person: The name of the label that holds the person of an image. None counts each image as a person of its own.
            An image whose value of the label is empty also counts as a person of its own.

    Raises:
        ConfigError: If there is no such part, or `image_tokens` is not a square number.
    """

    part: str = PARTS[0].name
    image_tokens: int = 16
    person: str | None = None

    def __post_init__(self) -> None:
        if self.part not in {part.name for part in PARTS}:
            raise ConfigError(f"--part {self.part}: give one of {', '.join(part.name for part in PARTS)}.")
        if self.image_tokens < 1 or math.isqrt(self.image_tokens) ** 2 != self.image_tokens:
            raise ConfigError(
                f"--image-tokens {self.image_tokens}: give a square number, such as 16 for a grid of 4 x 4."
            )

    def texts(self, captions: Sequence[Caption]) -> list[str]:
        """Returns the text of `part` of each caption of an image. Captions without this part are left out."""
        (part,) = (part for part in PARTS if part.name == self.part)
        return [text for caption in captions if (text := " ".join(part.texts(caption)).strip())]


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """Holds what is known about an image besides its vectors.

    Attributes:
        key: The key of its sample.
        person: The value of the label `PatchSettings.person`; the key of the sample if this setting is None, or if the
            value is empty.
        captions: The texts of the caption part; there is at least one.
    """

    key: str
    person: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class PatchFiles:
    """Gives access to the vectors of the images of a dataset that have a caption, in the order of the dataset.

    The row of an image is its index in `images`.

    Attributes:
        images: What is known about each image.
        left_out: Number of images of the dataset that have no vectors, by the reason: an image cannot be decoded, or
            has no caption.
        parts: The paths of the parts that have images, without the suffix of their files.
        digest: A digest of the model and its crop, the manifest of the dataset, the settings and the batch size of the
            tower.
    """

    images: tuple[CaptionedImage, ...]
    left_out: Mapping[str, int]
    parts: tuple[Path, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the number of patches of an image, and the size of the vector of a patch."""
        _, tokens, width = self._patches[0].shape
        return tokens, width

    def patches(self, rows: Sequence[int]) -> Float[Tensor, "rows tokens width"]:
        """Returns the patch vectors of the images with the given rows, in float32 and in the order of `rows`."""
        found = [self._patches[part][row] for part, row in map(self._place, rows)]
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def mean_patches(self) -> Float[Tensor, "tokens width"]:
        """Returns the mean over all images of the vector of each patch, in float32. The sums are computed in float64.

        Each place of the grid has a mean of its own.
        """
        total = np.sum([part.sum(0, dtype=np.float64) for part in self._patches], axis=0)
        return torch.from_numpy((total / len(self)).astype(np.float32))

    def pooled_blocks(self) -> Iterator[Float[np.ndarray, "rows width"]]:
        """Yields the pooled vectors of the images part by part, in float32, as the image tower returns them.

        They are neither projected nor scaled to unit length.
        """
        for path in self.parts:
            yield np.load(_pooled(path), mmap_mode="r", allow_pickle=False)

    @cached_property
    def _patches(self) -> list[np.ndarray]:
        return [np.load(_arrays(path), mmap_mode="r", allow_pickle=False) for path in self.parts]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(part) for part in self._patches)])

    def _place(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return part, row - int(self._starts[part])


def computed_patches(
    embedder: Embedder,
    url: str,
    settings: PatchSettings,
    folder: Path,
    *,
    world: RankGroup = ALONE,
    report: Callable[[int, int], object] | None = None,
) -> PatchFiles:
    """Computes the vectors of a packed dataset that are not in the folder yet, and opens the vectors of all images.

    This is a collective: all ranks must call it, and the result is equal on all of them.

    Args:
        embedder: The trained model, of which only the image tower is used.
        url: The packed dataset.
        settings: Which texts, patches and persons are read.
        folder: The folder of the files. It may also have the files of other models, datasets and settings.
        world: All ranks, in a group from `RankGroup.patient`.
        report: Called after each part of this rank with the number of images whose parts are finished on this rank, and
            the number of all images of this rank.

    Raises:
        ConfigError: If an image lacks the label `settings.person`, the patches cannot be averaged, or the ranks have
            different models or no common folder.
        LostContact: If another rank has failed.
        DataError: If no image has a caption.
        ShardsError: If the dataset cannot be read.
        StoreError: If a file cannot be written.
    """
    source = PackedSource(url)
    if source.without_caption == len(source):
        raise DataError(f"{source.address}: its samples have labels and no caption; give a dataset with captions.")
    digest = _digest(embedder, url, settings)
    if set(world.gather(digest)) != {digest}:
        raise ConfigError(f"{source.address}: the ranks read different models or data; give all of them the same ones.")
    place = folder / digest[:16]
    starts = range(0, len(source), PART_IMAGES)
    parts = {place / f"part-{at // PART_IMAGES:06d}": range(at, min(at + PART_IMAGES, len(source))) for at in starts}
    missing = world.run_on_main(lambda: _missing(place, parts))
    mine = missing[world.rank :: world.world_size]

    def compute() -> None:
        done = 0
        for path in mine:
            _write(path, embedder, source, parts[path], settings)
            done += len(parts[path])
            if report:
                report(done, sum(len(parts[each]) for each in mine))

    world.run_on_all(compute)
    world.run_on_all(lambda: _require_common(place, parts))
    return _opened(list(parts), digest, source.address)


def _missing(place: Path, parts: Iterable[Path]) -> list[Path]:
    place.mkdir(parents=True, exist_ok=True)
    return [path for path in parts if not _about(path).exists()]


def _require_common(place: Path, parts: Iterable[Path]) -> None:
    """Checks that this rank sees the parts of all ranks.

    Raises:
        ConfigError: If it does not.
    """
    if not all(_about(path).exists() for path in parts):
        raise ConfigError(f"{place}: {socket.gethostname()} does not see the files of other ranks: use a common disk.")


def opened_patches(folder: Path, digest: str) -> PatchFiles:
    """Opens the vectors of a dataset that `computed_patches` has written. The dataset itself is not needed.

    If `computed_patches` was interrupted, the result has only the images of the finished parts.

    Args:
        folder: The folder that `computed_patches` was given.
        digest: The digest of the wanted vectors (`PatchFiles.digest`).

    Raises:
        ConfigError: If the folder has no vectors with this digest.
        DataError: If no image has a caption.
    """
    place = folder / digest[:16]
    parts = [path.with_suffix("") for path in sorted(place.glob("part-*.json"))]
    if not parts:
        raise ConfigError(f"{place} has no patches of the training images: run emocap caption train again.")
    return _opened(parts, digest, str(place))


def _opened(parts: Sequence[Path], digest: str, address: str) -> PatchFiles:
    images: list[CaptionedImage] = []
    left_out: dict[str, int] = {}
    filled: list[Path] = []
    for path in parts:
        about = json.loads(_about(path).read_bytes())
        images += [CaptionedImage(key, person, tuple(captions)) for key, person, captions in about["images"]]
        for kind, count in about["left_out"].items():
            left_out[kind] = left_out.get(kind, 0) + count
        if about["images"]:
            filled.append(path)
    if not images:
        why = ", ".join(f"{count:,} x {kind}" for kind, count in left_out.items()) or "it is empty"
        raise DataError(f"{address}: no image has a caption ({why}).")
    return PatchFiles(tuple(images), left_out, tuple(filled), digest)


def _write(path: Path, embedder: Embedder, source: ExampleSource, numbers: range, settings: PatchSettings) -> None:
    """Computes and writes a part. Its JSON file is written last, and shows that the part is complete.

    Args:
        path: The path of the part without suffix.
        embedder: The trained model.
        source: The images of the dataset.
        numbers: The indices in `source` of the images of this part.
        settings: Which texts, patches and persons are read.

    Raises:
        ConfigError: If an image lacks the label `settings.person`, or the patches cannot be averaged.
        ShardsError: If the dataset cannot be read.
        StoreError: If a file cannot be written.
    """
    images: list[CaptionedImage] = []
    left_out: dict[str, int] = {}
    blocks: list[tuple[Tensor, Tensor]] = []
    with ThreadPoolExecutor(READERS, "emocap-read") as readers:
        for first in range(numbers.start, numbers.stop, BATCH):
            examples = cast("Sequence[Example]", source.examples(range(first, min(first + BATCH, numbers.stop))))
            crops: list[Crop] = []
            found = readers.map(partial(_cropped, embedder), examples)
            for example, crop in zip(examples, found, strict=True):
                texts = settings.texts(example.captions)
                if isinstance(crop, str) or not texts:
                    kind = crop if isinstance(crop, str) else f"no {settings.part} caption"
                    left_out[kind] = left_out.get(kind, 0) + 1
                    continue
                crops.append(crop)
                images.append(CaptionedImage(example.key, _person(example, settings), tuple(texts)))
            if crops:
                blocks.append(crop_vectors(embedder, crops, settings.image_tokens))
    if blocks:
        for name, arrays in zip((_arrays(path), _pooled(path)), zip(*blocks, strict=True), strict=True):
            with writing_to(name) as temporary, temporary.open("wb") as file:
                np.save(file, torch.cat(arrays).numpy(), allow_pickle=False)
    rows = [(image.key, image.person, image.captions) for image in images]
    with writing_to(_about(path)) as temporary:
        temporary.write_text(json.dumps({"schema": SCHEMA, "images": rows, "left_out": left_out}), encoding="utf-8")


def _cropped(embedder: Embedder, example: Example) -> Crop | str:
    """Returns the crop of an image that the model reads, or the reason in a few words if it cannot be decoded."""
    try:
        return example.content.crops(embedder.model.pixels, embedder.crop, embedder.resize)[0]
    except UNREADABLE as error:
        return reason(error)


def crop_vectors(
    embedder: Embedder, crops: Sequence[Crop], image_tokens: int
) -> tuple[Float16[Tensor, "crops tokens width"], Float[Tensor, "crops width"]]:
    """Returns the patch vectors of some crops in float16, and their pooled vectors in float32, both on the CPU.

    Both come from one pass of the image tower, without the projections. The patches of a crop are averaged over cells
    of their grid if there are more than `image_tokens`. Values outside the range of float16 become its nearest bound.

    Raises:
        ConfigError: If there are more than `image_tokens` patches, and they are not a square grid.
    """
    images = channels_first(crops)
    with torch.inference_mode():
        pooled, patches = embedder.model.image.encode_image(images.to(embedder.model.logit_scale.device))
        kept = pooled_to(patches.float(), image_tokens).cpu()
    # Larger values than float16 holds would be infinite, and a loss of NaN would follow.
    return kept.clamp(-_LARGEST, _LARGEST).half(), pooled.float().cpu()


def _person(example: Example, settings: PatchSettings) -> str:
    if settings.person is None:
        return example.key
    found = example.labels.get(settings.person)
    if found is None:
        known = ", ".join(sorted(example.labels)) or "none"
        raise ConfigError(f"--person {settings.person}: {example.key} has no such label; its labels are: {known}.")
    # An empty text says that the person is unknown, as in `evaluation/examples.py`. It must not be one person for all.
    return example.key if found == "" else label_text(found)


def _digest(embedder: Embedder, url: str, settings: PatchSettings) -> str:
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "model": embedder.digest(),
        "dataset": read_manifest(open_store(url)).digest,
        "crop": embedder.reads,
        "settings": [settings.part, settings.image_tokens, settings.person],
        "batch": BATCH,  # The last bits of a vector depend on it.
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _arrays(path: Path) -> Path:
    return path.with_suffix(".patches.npy")


def _pooled(path: Path) -> Path:
    return path.with_suffix(".pooled.npy")


def _about(path: Path) -> Path:
    return path.with_suffix(".json")
