"""Defines `emocap import`, which packs datasets from the files in which they are published.

A subcommand knows one dataset: its splits, its labels, and the mistakes of its files. `benchmark` knows all those that
have a card. Every other dataset of images is packed by `emocap pack`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
        Path | None, typer.Option(help="Landmarks of the faces (`emocap landmarks`), from which captions are written.")
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


@app.command("benchmark", cls=Command)
def benchmark_command(
    name: Annotated[str, typer.Argument(help="Name of a benchmark (see emocap benchmarks list).")],
    copy: Annotated[Path, typer.Argument(help="Folder with your copy.")],
    out: Out,
    fold: Annotated[int | None, typer.Option(help="Number of the fold, for a benchmark with folds.", min=1)] = None,
    frames: Annotated[int, typer.Option(help="Frames of each video; 1: the middle one.", min=1, max=16)] = 1,
    debug: Debug = False,
) -> None:
    """Pack a copy of a benchmark, to fine-tune a model on it. The label `emotion` is the class by its name.

    The splits are those of an evaluation: if the benchmark has no split for choices, one in ten training examples, or
    persons, is `valid`.
    """
    with errors_as_lines(debug=debug):
        from emocap_pretrain.benchmarks.catalogue import card
        from emocap_pretrain.benchmarks.reading.choice import fitting
        from emocap_pretrain.errors import ConfigError
        from emocap_pretrain.evaluation.benchmark_records import records
        from emocap_pretrain.evaluation.benchmark_source import sources_of

        about = card(name)
        if (about.folds is None) != (fold is None) or (about.folds and fold and fold > about.folds):
            folds = f"give --fold, from 1 to {about.folds}" if about.folds else "leave --fold out"
            raise ConfigError(f"{about.title} has {about.folds or 'no'} folds: {folds}.")
        sources = sources_of(about, copy, fitting(about, copy)[1], fold, with_attributes=True)
        _refuse_existing(out, [split for split, source in sources.items() if len(source)])
        for split, source in sources.items():
            if not len(source):
                console.print(f"{source.address} has no item and is not written.")
                continue
            left_out = Counter[str]()
            try:
                _write_dataset(_url(out, split), partial(records, source, frames, left_out))
            finally:  # If nothing is left, the reasons say why.
                for reason, count in left_out.most_common():
                    console.print(f"left out: {count:,} x {reason}.")
        console.print(f"The terms of {about.title} also hold for these datasets: {about.licence}")
        console.print(f"In a config: data.captions_from: [{name}], evaluation.faces_from: [{name}].")


def _refuse_existing(out: str, splits: Sequence[str] | None = None) -> None:
    """Checks that the import is not complete already, before the tables are read.

    Raises:
        ManifestError: If all datasets exist.
    """
    from emocap_pretrain.captions.ferplus.dataset import SPLITS

    if all(open_store(_url(out, split)).exists(MANIFEST) for split in splits or SPLITS):
        raise ManifestError(f"{out} holds these datasets already; delete them, or choose another place for the import.")


def _url(out: str, split: str) -> str:
    return f"{out.rstrip('/')}/{split}"


def _write(out: str, records_of: "Callable[[Split], Iterator[Record]]") -> None:
    """Writes the datasets of the three splits (`_write_dataset`)."""
    from emocap_pretrain.captions.ferplus.dataset import SPLITS

    for split in SPLITS:
        _write_dataset(_url(out, split), partial(records_of, split))


def _write_dataset(url: str, records: Callable[[], Iterator[Record]]) -> None:
    """Writes a dataset. One that an interrupted import has finished is compared and kept.

    Raises:
        ManifestError: If there is a dataset of other records.
    """
    if not open_store(url).exists(MANIFEST):
        manifest = write_shards(records(), url)
    elif _holds(url, records()):
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
