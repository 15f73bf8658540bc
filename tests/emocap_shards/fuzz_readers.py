"""Fuzzes every reader of bytes that other people can write, guided by coverage. It is a command, not a test:

    pip install atheris
    python tests/emocap_shards/fuzz_readers.py members|index|manifest|annotation|image -max_total_time=60

A reader may refuse bytes with its own errors. Any other error, too much time and too much memory are findings.
"""

import contextlib
import sys
import tarfile
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["emocap_shards"]):
    from emocap_shards.annotation import load_annotation
    from emocap_shards.decode import decode_image
    from emocap_shards.errors import AnnotationError, DamagedShard, ImageError, ManifestError
    from emocap_shards.index import load_index
    from emocap_shards.manifest import Manifest
    from emocap_shards.members import members_of

MAX_PIXELS = 1 << 16


def members(data: bytes) -> None:
    with contextlib.suppress(tarfile.TarError, ValueError):
        members_of(data)


def index(data: bytes) -> None:
    with contextlib.suppress(DamagedShard):
        for slot in load_index(data, shard="s"):
            assert slot.offset >= 0
            assert slot.length > 0


def manifest(data: bytes) -> None:
    with contextlib.suppress(ManifestError):
        found = Manifest.load(data, url="u")
        assert found.samples > 0
        assert all(not shard.path.startswith("/") and ".." not in shard.path.split("/") for shard in found.shards)


def annotation(data: bytes) -> None:
    with contextlib.suppress(AnnotationError):
        captions, _ = load_annotation(data)
        assert all(caption.global_.strip() for caption in captions)


def image(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        pixels = decode_image(data, max_pixels=MAX_PIXELS)
        assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
        assert pixels.shape[2] == 3


TARGETS: dict[str, Callable[[bytes], None]] = {
    "members": members,
    "index": index,
    "manifest": manifest,
    "annotation": annotation,
    "image": image,
}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
