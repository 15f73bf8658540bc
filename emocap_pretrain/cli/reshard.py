"""Defines `emocap reshard`, which writes datasets again with other shards."""

from typing import Annotated

import typer
from emocap_shards.manifest import read_manifest
from emocap_shards.writing.reshard import reshard

from emocap_pretrain.cli import options
from emocap_pretrain.cli.pack import Bar, shard_size, summarise
from emocap_pretrain.terminal import errors_as_lines


def command(
    urls: Annotated[list[str], typer.Argument(help="One or more datasets, followed by the new one.")],
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Shuffle with this seed.", min=0)] = None,
    shard_samples: options.ShardLimit = None,
    shard_bytes: options.ShardBytes = None,
    skip_bad: options.SkipBad = 0,
    number_keys: options.NumberKeys = False,
    debug: options.Debug = False,
) -> None:
    """Write datasets again as one, with other shards or another order. Images and captions keep their bytes."""
    with errors_as_lines(debug=debug):
        *sources, out = urls
        size = shard_size(shard_samples, shard_bytes)
        with Bar("resharding", sum(read_manifest(url).samples for url in sources)) as bar:
            packed = reshard(
                sources, out, size=size, seed=shuffle, number_keys=number_keys, skip_bad=skip_bad, progress=bar.show
            )
        summarise(out, packed, bar)
