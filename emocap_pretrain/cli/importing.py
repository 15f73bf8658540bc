"""Defines `emocap import`, which packs datasets from the files in which they are published.

A subcommand knows one dataset: its splits, its labels, and the mistakes of its files. Every other dataset of images is
packed by `emocap pack`.
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from emocap_shards.annotation import dump_annotation
from emocap_shards.errors import ManifestError
from emocap_shards.inspecting.wording import counted
from emocap_shards.manifest import MANIFEST, read_manifest
from emocap_shards.sample import Encoded, Record
from emocap_shards.store import open_store
from emocap_shards.writer import write_shards
from emocap_shards.writing.dataset import DatasetSource

from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import Command, Group, console, errors_as_lines

if TYPE_CHECKING:
    from emocap_pretrain.captions.ferplus.dataset import Split

app = typer.Typer(cls=Group, help="Pack a dataset from the files in which it is published.", no_args_is_help=True)
Images = Annotated[Path, typer.Argument(metavar="FER2013", help="fer2013.csv, or a folder of its images.")]
Out = Annotated[str, typer.Argument(help="Folder or URL in which the datasets train, valid and test are written.")]


@app.command("fer2013", cls=Command)
def fer2013_command(source: Images, out: Out, debug: Debug = False) -> None:
    """Pack FER2013: grey faces of 48 x 48 pixels with the label `emotion`, and without captions."""
    with errors_as_lines(debug=debug):
        from emocap_pretrain.captions.ferplus.dataset import fer2013_records
        from emocap_pretrain.captions.ferplus.tables import read_fer2013

        _refuse_existing(out)
        found = read_fer2013(source)
        _write(out, lambda split: fer2013_records(found, split))
        if found.left_out:
            console.print(f"left out {counted(found.left_out, 'other file')}.")


@app.command("ferplus", cls=Command)
def ferplus_command(
    source: Images,
    votes: Annotated[Path, typer.Argument(metavar="FER2013NEW_CSV", help="fer2013new.csv, with the votes of FER+.")],
    out: Out,
    landmarks: Annotated[
        Path | None, typer.Option(help="Landmarks of the faces (launch/landmarks.py), from which captions are written.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Pack FER+: the faces of FER2013 with the votes of ten people, and with captions if landmarks are given.

    The label `emotion` is the emotion with a majority of the votes; the labels `share_...` are the shares of the votes.
    """
    with errors_as_lines(debug=debug):
        from emocap_pretrain.captions.ferplus.dataset import load_tables, records

        _refuse_existing(out)
        faces, nameless = load_tables(source, votes, landmarks)
        _write(out, lambda split: records(faces, split))
        if nameless:
            console.print(f"left out {counted(nameless, 'row')} without a name in FER+, because they show no face.")


def _refuse_existing(out: str) -> None:
    """Checks that the import is not complete already, before the tables are read.

    Raises:
        ManifestError: If all datasets exist.
    """
    if all(open_store(url).exists(MANIFEST) for url in _urls(out).values()):
        raise ManifestError(f"{out} holds these datasets already; delete them, or choose another place for the import.")


def _urls(out: str) -> "dict[Split, str]":
    from emocap_pretrain.captions.ferplus.dataset import SPLITS

    return {split: f"{out.rstrip('/')}/{split}" for split in SPLITS}


def _write(out: str, records_of: "Callable[[Split], Iterator[Record]]") -> None:
    """Writes the datasets. Those that an interrupted import has finished are compared and kept.

    Raises:
        ManifestError: If there is a dataset of other records.
    """
    for split, url in _urls(out).items():
        if not open_store(url).exists(MANIFEST):
            manifest = write_shards(records_of(split), url)
        elif _holds(url, records_of(split)):
            manifest = read_manifest(url)
        else:
            raise ManifestError(f"{url} holds another dataset; delete it, or choose another place for the import.")
        size = f"{counted(len(manifest.shards), 'shard')}, {manifest.total_bytes / 1e6:.1f} MB"
        console.print(f"{url}: {counted(manifest.samples, 'sample')} in {size}.")


def _holds(url: str, records: Iterator[Record]) -> bool:
    """Returns whether a dataset has exactly these records."""
    for stored, record in zip_longest(DatasetSource.open([url]).encoded(), records):
        if record is None or not isinstance(stored, Encoded):
            return False
        annotation = dump_annotation(record.caption, record.labels, record.further)
        if (stored.key, bytes(stored.image), bytes(stored.annotation)) != (record.key, record.image, annotation):
            return False
    return True
