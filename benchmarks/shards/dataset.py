"""The images of the benchmark: faces, drawn or from a folder, many times over under different keys."""

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

from .host import Pythons, call, python_command

SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The samples of a dataset.

    Args:
        images: A folder of JPEG files, or None for drawn faces.
        distinct: Images that differ in their pixels.
        samples: In the dataset.
        shard_samples: In one shard of ours; the peers' shards have as many bytes.
        pixels: Side of a drawn face.
    """

    images: Path | None
    distinct: int
    samples: int
    shard_samples: int
    pixels: int

    @property
    def name(self) -> str:
        what = json.dumps([str(self.images), self.distinct, self.samples, self.shard_samples, self.pixels, SEED])
        return hashlib.sha256(what.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Datasets:
    """The same samples in every format, below one folder: tars/, mds/ and lit/."""

    folder: Path
    samples: int
    image_bytes: int  # of one, on average

    def at(self, kind: str) -> Path:
        return self.folder / kind

    @property
    def tars(self) -> list[Path]:
        return sorted(self.at("tars").glob("*.tar"))


def prepare(wanted: Wanted, work: Path, pythons: Pythons) -> Datasets:
    """Makes the datasets; those that lie in the work folder from an earlier run are used again."""
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
            call(python_command(pythons, "convert", words, of_peers=True), pythons)
        done.write_text(json.dumps(sum(len(each.image) for each in pool) // len(pool)))
    return Datasets(folder, wanted.samples, json.loads(done.read_text()))


def faces(wanted: Wanted) -> list[Record]:
    """The distinct ones; captions and labels are always those of drawn faces."""
    if wanted.images is None:
        return list(records(wanted.distinct, seed=SEED, pixels=wanted.pixels))
    files = sorted(path for path in wanted.images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if not files:
        raise ValueError(f"--images {wanted.images}: there is no .jpg file in it.")
    chosen = random.Random(SEED).sample(files, min(wanted.distinct, len(files)))
    drawn = records(len(chosen), seed=SEED, pixels=16)
    return [replace(face, image=path.read_bytes()) for face, path in zip(drawn, chosen, strict=True)]


def _repeated(pool: Sequence[Record], samples: int) -> Iterator[Record]:
    for number in range(samples):
        face = pool[number % len(pool)]
        yield replace(face, key=f"{number:08d}", image=commented(face.image, f"copy {number}"))


def commented(jpeg: bytes, text: str) -> bytes:
    """The same picture in other bytes: a COM segment after the marker that begins every JPEG."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
