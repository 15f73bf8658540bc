"""Makes the datasets of the benchmark from faces, which are drawn or read from a folder.

To get enough samples, each face is repeated under different keys.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emocap_shards.sample import Record
from emocap_shards.writer import write_shards

from emocap_pretrain.captions.rendered.dataset import records

from .host import Pythons

SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The description of a dataset.

    Attributes:
        images: A folder of JPEG files, or None for drawn faces.
        distinct: The number of images that differ in their pixels.
        samples: The number of samples in the dataset.
        shard_samples: The number of samples in one shard of ours. The shards of the other formats have about as many
            bytes.
        pixels: The side of a drawn face in pixels.
    """

    images: Path | None
    distinct: int
    samples: int
    shard_samples: int
    pixels: int

    @property
    def name(self) -> str:
        """The name of the dataset's folder, a hash of the description."""
        what = json.dumps([str(self.images), self.distinct, self.samples, self.shard_samples, self.pixels, SEED])
        return hashlib.sha256(what.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Datasets:
    """The same samples in every format, in the folders tars/, mds/ and lit/.

    Attributes:
        folder: The folder that contains tars/, mds/ and lit/.
        samples: The number of samples.
        image_bytes: The mean size of an image file, in bytes.
    """

    folder: Path
    samples: int
    image_bytes: int

    @property
    def tars(self) -> list[Path]:
        return sorted((self.folder / "tars").glob("*.tar"))


def prepare(wanted: Wanted, work: Path, pythons: Pythons) -> Datasets:
    """Returns the dataset `wanted` in every format. It is made unless an earlier run has left it in the folder `work`.

    If the environment of the other libraries is missing, only tars/ is made.
    """
    folder = work / "datasets" / f"{wanted.name}{'' if pythons.has_peers else '-ours'}"
    done = folder / "done.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        pool = faces(wanted)
        manifest = write_shards(
            _repeated(pool, wanted.samples), folder / "tars", samples_per_shard=wanted.shard_samples
        )
        if pythons.has_peers:
            shard_bytes = manifest.total_bytes * wanted.shard_samples // wanted.samples
            words = [str(folder / "tars"), str(folder), str(shard_bytes)]
            pythons.call(pythons.command("convert", words, is_peer=True))
        done.write_text(json.dumps(sum(len(each.image) for each in pool) // len(pool)))
    return Datasets(folder, wanted.samples, json.loads(done.read_text()))


def faces(wanted: Wanted) -> list[Record]:
    """Returns the different samples that are repeated to make the dataset.

    Captions and labels are those of drawn faces, also for images from a folder.

    Raises:
        ValueError: If the folder has no JPEG file.
    """
    if wanted.images is None:
        return list(records(wanted.distinct, seed=SEED, pixels=wanted.pixels))
    files = sorted(path for path in wanted.images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if not files:
        raise ValueError(f"--images {wanted.images}: there is no .jpg file in it.")
    chosen = random.Random(SEED).sample(files, min(wanted.distinct, len(files)))
    drawn = records(len(chosen), seed=SEED, pixels=16)
    return [replace(face, image=path.read_bytes()) for face, path in zip(drawn, chosen, strict=True)]


def _repeated(pool: Sequence[Record], samples: int) -> Iterator[Record]:
    """Yields `samples` samples, for which it goes through the pool repeatedly.

    Each sample gets a new key, and a different comment in its JPEG file. So repeated images have the same pixels, but
    different bytes.
    """
    for number in range(samples):
        face = pool[number % len(pool)]
        yield replace(face, key=f"{number:08d}", image=commented(face.image, f"copy {number}"))


def commented(jpeg: bytes, text: str) -> bytes:
    """Returns a JPEG file with the same pixels, but other bytes.

    A comment (COM segment) with `text` is inserted after the marker that begins every JPEG file.
    """
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
