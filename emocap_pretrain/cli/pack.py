"""`emocap pack`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from emocap_shards.pack import Columns, records_from
from emocap_shards.sample import Record
from emocap_shards.writer import write_shards
from tqdm import tqdm

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.options import Debug, ShardSamples
from emocap_pretrain.terminal import console, errors_as_lines


def command(
    source: Annotated[Path, typer.Argument(help="Folder with image + .json pairs, a .jsonl or a .csv table.")],
    out: Annotated[str, typer.Argument(help="Folder or URL of the new dataset.")],
    image: Annotated[str, typer.Option(help="Column with the image's path.")] = "image",
    whole: Annotated[str, typer.Option("--global", help="Column of the global part.")] = "global",
    local: Annotated[str, typer.Option(help="Column of the local sentences: a list, or text split by |.")] = "local",
    summary: Annotated[str, typer.Option(help="Column of the summary.")] = "summary",
    key: Annotated[str, typer.Option(help="Column of the key; default the image's path.")] = "key",
    label: Annotated[list[str] | None, typer.Option(help="A column to keep as label; may be given often.")] = None,
    samples_per_shard: ShardSamples = 1000,
    debug: Debug = False,
) -> None:
    """Pack captioned images into WebDataset shards with a manifest."""
    with errors_as_lines(debug=debug):
        columns = Columns(image, whole, local, summary, key, tuple(label or ()))
        write(tqdm(records_from(source, columns), "packing", unit="sample", disable=None), out, samples_per_shard)


def write(records: Iterable[Record], url: str, samples_per_shard: int) -> None:
    manifest = write_shards(records, url, samples_per_shard=samples_per_shard)
    megabytes = manifest.total_bytes / 1e6
    console.print(f"{url}: {manifest.samples} samples in {tables.shards(len(manifest.shards))}, {megabytes:.1f} MB.")
