"""Writes the faces of `shard_cases` as files and tables, as sources for the tests of packing."""

import json
import uuid
from pathlib import Path

from emocap_shards.annotation import dump_annotation
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.store import open_store
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.row import SourceRow
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import STANDARD
from shard_cases import encode, record


def parts(number):
    caption = record(number).caption
    return {"global": caption.global_, "local": list(caption.local), "summary": caption.summary}


def table_row(number, **changes):
    return {"image": f"{number}.png", **parts(number), "labels": dict(record(number).labels)} | changes


def write_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def table_of(folder: Path, count: int) -> Path:
    """Writes `count` images 0.png, 1.png, ... and the table faces.jsonl, which names them; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode(number))
    return write_lines(folder / "faces.jsonl", map(table_row, range(count)))


def folder_of(folder: Path, count: int) -> Path:
    """Writes `count` images 0000.png, 0001.png, ... each with its annotation; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(encode(number))
        annotation = {"caption": parts(number), "labels": dict(record(number).labels)}
        (folder / f"{number:04d}.json").write_text(json.dumps(annotation))
    return folder


def packed(source, out, columns=STANDARD, *, samples=1000, **options):
    """Packs the source at a path."""
    return pack(open_source(source, columns), out, PackConfig(ShardSize(samples), **options))


def bad_rows(source, columns=STANDARD, **options) -> list[str]:
    """Returns the reasons for which `pack` leaves rows out."""
    with_good = _WithOneGoodRow(open_source(source, columns, **options))
    return [str(bad) for bad in pack(with_good, f"memory://{uuid.uuid4().hex}", PackConfig(skip_bad=1000)).skipped]


class _WithOneGoodRow:
    """Adds one good row to a source of bad rows, because a dataset must have a sample."""

    total = None

    def __init__(self, source):
        self._source = source

    def rows(self):
        good = record(99)
        yield SourceRow("good", "good-row", good.image, dump_annotation(good.caption, good.labels))
        yield from self._source.rows()


def samples_of(url) -> list[Encoded]:
    manifest = read_manifest(url)
    return Reader(open_store(url), manifest).fetch(range(manifest.samples))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
