"""One or several datasets -> one with other shards, or in another order."""

from collections.abc import Callable, Sequence
from pathlib import Path

from emocap_shards.writing.dataset import DatasetSource
from emocap_shards.writing.packing import PackConfig, Packed, PackProgress, pack
from emocap_shards.writing.prepare import PrepareConfig
from emocap_shards.writing.shards import ShardSize


def reshard(
    urls: Sequence[str],
    out: str | Path,
    *,
    size: ShardSize | None = None,
    seed: int | None = None,
    number_keys: bool = False,
    skip_bad: int = 0,
    progress: Callable[[PackProgress], None] | None = None,
) -> Packed:
    """Writes the samples of all datasets, one behind the other or shuffled by `seed`, in shards of another size.

    Images and annotations stay the bytes that they are; every checksum, header and annotation is checked, no pixel is
    decoded. Reading, writing and uploading go on at the same time. Interrupted and called again, it goes on where it
    stopped.

    Raises:
        ManifestError: If there is no dataset at one of `urls`, or one at `out` already.
        RecordError: If more than `skip_bad` samples are damaged or have the key of another (`number_keys` gives each a
            key of its own); a missing shard counts with all of its samples.
    """
    source = DatasetSource.open(urls, seed=seed)
    options = PackConfig(size or ShardSize(), PrepareConfig(trusted=True), number_keys=number_keys, skip_bad=skip_bad)
    return pack(source, out, options, progress=progress)
