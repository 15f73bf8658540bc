"""Converts our tars to the formats of mosaicml-streaming and litdata, in shards of about the same size.

The command line is `python -m benchmarks.shards.hosts.convert TARS FOLDER BYTES`. TARS is the folder of our tars,
FOLDER the parent of the new folders, and BYTES the size of a shard.
"""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import emocap_torchvision

emocap_torchvision.install()
from litdata.streaming.writer import BinaryWriter  # noqa: E402 - after emocap_torchvision
from streaming import MDSWriter  # noqa: E402 - after emocap_torchvision


def main() -> None:
    """Writes the folders mds/ and lit/ into FOLDER, with shards of about BYTES bytes."""
    tars, folder, shard_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    columns = {"jpg": "bytes", "json": "bytes"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=shard_bytes) as writer:
        for row in _rows(tars):
            writer.write(row)
    chunks = BinaryWriter(str(folder / "lit"), chunk_bytes=shard_bytes)
    for number, row in enumerate(_rows(tars)):
        chunks.add_item(number, row)
    chunks.done()
    chunks.merge()


def _rows(tars: Path) -> Iterator[dict[str, bytes]]:
    """Yields the image and the annotation (JSON) of each sample; in our tars, each image precedes its annotation."""
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [file.read() for member in tar if (file := tar.extractfile(member))]
        for image, annotation in zip(members[::2], members[1::2], strict=True):
            yield {"jpg": image, "json": annotation}


if __name__ == "__main__":
    main()
