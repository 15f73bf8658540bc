"""Writes one or several datasets as one new dataset, with other shards or in another order."""

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
    """Writes the samples of all datasets, one dataset after the other or shuffled by `seed`, in shards of another size.

    The bytes of images and annotations do not change. Every checksum, header and annotation is checked, and no pixel is
    decoded. Reading, writing and uploading happen at the same time. A repeated call resumes an interrupted one.

    Args:
        urls: The datasets to read.
        out: The new dataset.
        size: Limits of a new shard; by default 1,000 samples.
        seed: Seed of the shuffled order; None keeps the order of the datasets.
        number_keys: Gives each sample its number as key, so that the datasets may have keys in common.
        skip_bad: Number of damaged samples that may be left out. A missing shard counts with all of its samples.
        progress: Called after each sample and after each stored shard.

    Raises:
        ManifestError: If there is no dataset at one of `urls`, or there is one at `out` already.
        RecordError: If more than `skip_bad` samples are damaged or have the key of another sample.
    """
    source = DatasetSource.open(urls, seed=seed)
    options = PackConfig(size or ShardSize(), PrepareConfig(trusted=True), number_keys=number_keys, skip_bad=skip_bad)
    return pack(source, out, options, progress=progress)
