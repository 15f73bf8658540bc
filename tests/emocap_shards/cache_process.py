"""A process that fills a cache from a dataset in a folder; test_cache.py starts several at a time.

The arguments are the dataset, the folder of the cache, max_bytes, a log file, the seconds that a fetch takes, and the
number of the fetch that finds the store unreachable (0: none). The log has one line for each fetched segment.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np
from emocap_shards.cache import Cache
from emocap_shards.errors import StoreError
from emocap_shards.index import read_index
from emocap_shards.manifest import read_manifest
from emocap_shards.segment import ShardRows
from emocap_shards.store import open_store


def main(url: str, folder: str, max_bytes: int, log: str, seconds: float, outage: int) -> None:
    store, cache, numbers = open_store(url), Cache(folder, max_bytes), itertools.count(1)

    def fetch(spans):
        time.sleep(seconds)
        if next(numbers) == outage:
            raise StoreError("the store does not answer")
        with Path(log).open("a") as lines:
            lines.writelines(f"{path} {start}\n" for path, start, _ in spans)
        return store.read_ranges(spans)

    for shard in read_manifest(store).shards:
        rows = ShardRows(shard, read_index(store, shard), np.arange(shard.samples))
        parts = list(rows.segments())
        brought = {segment.name: data for segment, data in cache.bring([segment for segment, _ in parts], fetch)}
        for segment, part in parts:
            data = brought.get(segment.name)
            blocks = segment.pieces(part, data) if data else cache.read(segment, part)
            assert blocks is None or [len(block) for block in blocks] == (part.stops - part.starts).tolist()


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5]), int(sys.argv[6]))
