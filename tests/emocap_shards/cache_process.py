"""A process that fills a cache from a folder dataset, one of several at a time; test_cache.py starts it.

Arguments: dataset, cache folder, max_bytes, log file, seconds that a fetch takes. Each fetched segment is a line of
the log.
"""

import sys
import time
from pathlib import Path

import numpy as np
from emocap_shards.cache import Cache
from emocap_shards.indexes import read_index
from emocap_shards.manifest import read_manifest
from emocap_shards.segment import Rows
from emocap_shards.store import open_store


def main(url: str, folder: str, max_bytes: int, log: str, seconds: float) -> None:
    store, cache = open_store(url), Cache(folder, max_bytes)

    def fetch(spans):
        time.sleep(seconds)
        with Path(log).open("a") as lines:
            lines.writelines(f"{path} {start}\n" for path, start, _ in spans)
        return store.read_ranges(spans)

    for shard in read_manifest(store).shards:
        rows = Rows(shard, read_index(store, shard), np.arange(shard.samples))
        parts = list(rows.segments())
        cache.fill([segment for segment, _ in parts], fetch)
        for segment, part in parts:
            blocks = cache.read(segment, part)
            assert blocks is None or [len(block) for block in blocks] == (part.stops - part.starts).tolist()


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
