"""Converts our tars to the formats of the peers, in shards of about the same size: `... convert TARS FOLDER BYTES`."""
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnusedImport=false
# pyright: reportUntypedBaseClass=false

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from . import quiet, torch_vision  # noqa: F401 - before the peers

# isort: split

from litdata.streaming.writer import BinaryWriter
from streaming import MDSWriter

Row = dict[str, bytes]


def main() -> None:
    tars, folder, shard_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with MDSWriter(
        out=str(folder / "mds"), columns={"jpg": "bytes", "json": "bytes"}, size_limit=shard_bytes
    ) as writer:
        for row in _rows(tars):
            writer.write(row)
    chunks = BinaryWriter(str(folder / "lit"), chunk_bytes=shard_bytes)
    for number, row in enumerate(_rows(tars)):
        chunks.add_item(number, row)
    chunks.done()
    chunks.merge()


def _rows(tars: Path) -> Iterator[Row]:
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(member.name, file.read()) for member in tar if (file := tar.extractfile(member))]
        for (_, image), (_, annotation) in zip(members[::2], members[1::2], strict=True):
            yield {"jpg": image, "json": annotation}


if __name__ == "__main__":
    main()
